"""How far a run is: a bar with the time left, or a line for each record where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from baichuan.language import translate


class Progress(TrainerCallback):  # type: ignore[misc]  # untyped base
    """Shows steps, loss, tokens a second and the time left on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the bar; a resumed run's begins where that run does."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit=translate("step"),
                disable=args.disable_tqdm or not sys.stderr.isatty(),
                dynamic_ncols=True,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move on by a step."""
        if self._bar is not None:
            self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the figures of a record."""
        if self._bar is None or not logs:
            return
        if "loss" in logs:
            figures = {"loss": f"{logs['loss']:.4g}"}
            if "tokens_per_second" in logs:
                figures[translate("tokens/s")] = f"{logs['tokens_per_second']:,.0f}"
            self._bar.set_postfix(figures)
            if self._bar.disable:
                tqdm.write(_line(state, figures), file=sys.stderr)
        elif "eval_loss" in logs:
            shown = {translate("evaluation loss"): f"{logs['eval_loss']:.4g}"}
            tqdm.write(_line(state, shown), file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _line(state: Any, figures: dict[str, str]) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in figures.items())
    return translate(
        "step {step} of {all}: {shown}", step=state.global_step, all=state.max_steps, shown=shown
    )
