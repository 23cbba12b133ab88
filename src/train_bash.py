"""The path that the original README starts: `deepspeed --num_gpus=8 src/train_bash.py ...`."""

from baichuan.cli.main import run
from baichuan.cli.train import main

if __name__ == "__main__":
    run(main)
