"""The `Trainer` of Hugging Face's transformers as a workload's own training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from search.errors import EnvironmentProblem
from search.workloads.base import Train
from search.workloads.run import Run

OF_THE_RUN = {
    "num_train_epochs": "epochs", "learning_rate": "learning_rate", "per_device_train_batch_size": "batch",
    "seed": "seed",
}  # fmt: skip
"""Argument of `TrainingArguments` -> attribute of a `Run`."""
LOGGED = 10
"""Steps between two losses that are reported."""


def from_hf(data: Callable[[], Any], arguments: dict[str, Any] | None = None, **more: Any) -> Train:
    """A `train=` that runs a `transformers.Trainer`.

    Epochs, learning rate, batch, seed and precision are the run's. Nothing is evaluated, logged elsewhere or saved
    unless `arguments` say so.

    Args:
        data: () -> the data set to train on, whose items the network takes by their names and answers with a loss.
        arguments: of `TrainingArguments`, instead of the run's.
        more: of `Trainer`, such as `data_collator`.
    """
    return partial(_train, data=data, arguments=arguments or {}, more=more)


def _train(
    network: nn.Module, run: Run, *, data: Callable[[], Any], arguments: dict[str, Any], more: dict[str, Any]
) -> None:
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentProblem(
            f"from_hf() needs transformers ({error}): pip install 'prunefront[transformers]'"
        ) from None

    class Follower(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Tells the run how long the training is, and its losses."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            run.begin(state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "loss" in logs:
                run.report(float(logs["loss"]))

    replaced = {*arguments, *(["num_train_epochs"] if "max_steps" in arguments else [])}
    with TemporaryDirectory() as folder:
        own: dict[str, Any] = {
            **{name: getattr(run, ours) for name, ours in OF_THE_RUN.items() if name not in replaced},
            "output_dir": folder, "use_cpu": run.device.type == "cpu",
            "bf16": run.precision == "bf16", "fp16": run.precision == "fp16", "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "logging_steps": LOGGED, "dataloader_pin_memory": run.device.type == "cuda",
        }  # fmt: skip
        settings = transformers.TrainingArguments(**{**own, **arguments})
        followers = [Follower(), *more.get("callbacks", ())]
        trainer = transformers.Trainer(
            model=network, args=settings, train_dataset=data(), **{**more, "callbacks": followers}
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # which 16 bits put around forward
