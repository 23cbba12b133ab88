"""Evaluates subjects of CMMLU with lm-evaluation-harness, one for each line of stdin.

    python lm_eval_cmmlu.py CMMLU WORK BATCH_SIZE

Runs where `lm_eval` is installed beside the package, which makes transformers know the demo model.
The harness's own task is used as it is, but for its data, which are read from the folder CMMLU. For
each subject a line of JSON is printed: its accuracy and seconds, from the task's rows to the
scores; loading the model and reading the data are not in them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict

from baichuan.checkpoint.load import DEMO


def write_task(subject: str, folder: Path, work: Path) -> None:
    """Write the harness's task of a subject, with the data of the folder."""
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks" / "cmmlu"
    settings = yaml.safe_load((tasks / "_default_template_yaml").read_text("utf-8"))
    settings |= yaml.safe_load((tasks / f"cmmlu_{subject}.yaml").read_text("utf-8"))
    del settings["include"], settings["dataset_name"]
    files = {split: str(folder / split / f"{subject}.csv") for split in ("dev", "test")}
    settings |= {"dataset_path": "csv", "dataset_kwargs": {"data_files": files}}
    settings["task"] = f"here_{subject}"
    (work / f"{subject}.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), "utf-8")


def main() -> None:
    """Answer each line."""
    folder, work, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    work.mkdir(parents=True, exist_ok=True)
    # The demo's context is 1,024 tokens; CMMLU's prompts are cut at 2,048.
    model = HFLM(str(DEMO), dtype="float32", device="cpu", batch_size=batch_size, max_length=2048)
    for line in sys.stdin:
        subject = line.strip()
        write_task(subject, folder, work)
        manager = TaskManager(include_path=str(work), include_defaults=False)
        tasks: Any = get_task_dict([f"here_{subject}"], manager)
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=5)
        started = time.perf_counter()
        found = evaluator.evaluate(model, tasks, bootstrap_iters=0)
        seconds = time.perf_counter() - started
        accuracy = found["results"][f"here_{subject}"]["acc,none"]
        print(json.dumps({"accuracy": accuracy, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
