# docker build -t baichuan .
# docker run --rm -p 8000:8000 -v ~/.cache/huggingface:/home/user/.cache/huggingface \
#     baichuan baichuan-inc/Baichuan-13B-Chat --bits 4 --host 0.0.0.0 --api-key "$KEY"
# For CPUs; `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130` is for NVIDIA GPUs.
FROM python:3.13-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/baichuan && /opt/baichuan/bin/pip install torch==2.13.0 --index-url "$TORCH_INDEX"
COPY . /source
RUN /opt/baichuan/bin/pip install '/source[serve]'

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/baichuan /opt/baichuan
RUN useradd --create-home user
USER user
EXPOSE 8000
ENTRYPOINT ["/opt/baichuan/bin/baichuan", "serve"]
