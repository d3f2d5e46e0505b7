"""Give a run its first weights: a checkpoint to resume, the configured weights, or random ones."""

from __future__ import annotations

from typing import Optional

from tpvformer.compat import Report, load_weights
from tpvformer.compat.pretrained import starting_weights
from tpvformer.config import Config
from tpvformer.engine.checkpoint import state as checkpoint
from tpvformer.engine.checkpoint.resume import ResumePoint, begin_average
from tpvformer.engine.checkpoint.schema import MID_EPOCH_KEYS
from tpvformer.engine.distributed import consistency as same
from tpvformer.engine.foreign.own_model import OwnModel, load_own_weights
from tpvformer.engine.loop import TrainState
from tpvformer.errors import ConfigError

# parts that may start from random weights beside loaded ones
HEADS = ("detection", "image_head", "history", "detection_history")


def start_from(run: TrainState, origin: Optional[ResumePoint]) -> None:
    """Resume from a checkpoint, or load the configured weights, or keep the random ones."""
    config, log = run.config, run.log
    if origin is not None:
        path, content = origin
        same.check_resumed(content, path, run.sets, log)
        run.progress, changed = checkpoint.resume(content, path, run.model, run.stepper, config)
        run.mid_epoch_state = {name: content[name] for name in MID_EPOCH_KEYS if name in content}
        log.line(f"resumed {path} at epoch {run.progress.epoch}, iteration {run.progress.global_iter}")
        if changed:
            log.warn(f"this run's settings differ from the checkpoint's: {changed}")
        otherwise = run.precision.otherwise(content.get("precision"), config)
        if otherwise:
            log.warn(f"checkpoint {path} {otherwise}")
        if run.progress.epoch >= config.train.epochs:
            log.line(
                f"all {config.train.epochs} epochs are done already; nothing to train, evaluating the result again"
            )
    elif config.train.load_from is None and isinstance(run.model, OwnModel):
        log.line("the weights are those that the checkout's own code has drawn (train.load_from is null)")
    elif config.train.load_from is None:
        _warn_dead_backbone(run)
    elif isinstance(run.model, OwnModel) and starting_weights(config.train.load_from).exists():
        for line in load_own_weights(run.model, starting_weights(config.train.load_from), whole=False):
            log.line(line)
    elif starting_weights(config.train.load_from).exists():
        report = load_weights(run.model, starting_weights(config.train.load_from), fresh=HEADS)
        _refuse_frozen(report, config)
        for line in report.lines():
            log.line(line)
        for text in report.warnings:
            log.warn(f"train.load_from {report.source}: {text}")
    else:
        log.warn(f"train.load_from {config.train.load_from} does not exist; measuring speed with random weights")
    begin_average(run.average, origin, log)


def _refuse_frozen(report: Report, config: Config) -> None:
    """Raise ConfigError where a layer of classes starts afresh in a part that does not learn."""
    for part in sorted({name.split(".")[0] for name in report.renewed} & set(config.train.freeze)):
        raise ConfigError(
            f"train.freeze names {part}, but train.load_from {report.source} has another number of classes, so its "
            f"last layer starts afresh and has to learn; leave {part} out of train.freeze"
        )


def _warn_dead_backbone(run: TrainState) -> None:
    """Warn of a random backbone whose frozen norms have scale 0: its residual blocks cannot learn."""
    backbone = run.config.model.backbone
    if backbone.norm == "frozen" and backbone.bn3_init == 0:
        run.log.warn(
            "the backbone starts from random weights with frozen norms whose residual scale is 0, so its blocks cannot "
            "learn; set model.backbone.norm=batch and model.backbone.bn3_init=0.2, or train.load_from"
        )


def check_start(config: Config, max_steps: Optional[int]) -> None:
    """Raise ConfigError if the configured weights do not exist, before the data and the model are built."""
    weights = config.train.load_from
    if weights is None or max_steps is not None or starting_weights(weights).exists():
        return
    raise ConfigError(
        f"train.load_from: {weights} does not exist; put the pre-trained backbone there, or start "
        "from random weights with --set train.load_from=null"
    )
