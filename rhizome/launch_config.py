"""Flags of the launcher: its own and those of every service, from one command line.

This is the one place in `rhizome` that imports from `services`, and only their configuration dataclasses, so
`--help` is complete without being written twice and without loading a service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhizome.models import DEFAULT_MODEL
from services.gateway.config import GatewayConfig
from services.scheduler.config import SchedulerConfig
from services.tokenizer.config import TokenizerConfig
from services.vision.config import VisionConfig
from services.worker.config import WorkerConfig
from shared.config import add_flags, flat_fields, from_namespace, new_parser, option
from shared.errors import ConfigError

SERVICE_CONFIGS: dict[str, type] = {
    "gateway": GatewayConfig,
    "tokenizer": TokenizerConfig,
    "vision": VisionConfig,
    "scheduler": SchedulerConfig,
    "worker": WorkerConfig,
}
_SET_BY_LAUNCHER = frozenset({"name", "metrics_port", "tp_rank", "dist_init_addr", "scheduler_name", "tokenizer_path"})
"""Options that differ between instances: the launcher chooses them."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """What the launcher itself takes. Resolved once in `main`."""

    model_path: str = option(
        DEFAULT_MODEL, help="model directory in Hugging Face format, or a hub id (org/name)",
        group="model", metavar="PATH|ID",
    )  # fmt: skip
    nats_url: str = option("", help="existing NATS server(s), comma-separated (default: start one)", group="bus")
    nats_port: int = option(0, help="loopback port of the NATS server it starts; 0 = any free one", group="bus")
    num_gateways: int = option(1, help="gateways, on ports --port, --port + 1, ...", group="launcher")
    num_tokenizers: int = option(1, help="tokenizers", group="launcher")
    num_vision: int = option(
        1, help="vision instances, for models that take images; 0 = none, images are refused", group="launcher"
    )
    num_engines: int = option(1, help="engines (copies of the model), each of --tp-size processes", group="launcher")
    tp_size: int = option(1, help="processes (GPUs) that share one copy of the model", group="launcher")
    log_dir: str = option(
        "", help="write each process's output to a file in this directory (default: all to stderr)",
        group="logging", metavar="DIR",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("num_gateways", "num_tokenizers", "num_engines", "tp_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: use a positive number")
        if self.num_vision < 0:
            raise ConfigError(f"--num-vision {self.num_vision}: use 0 or a positive number")
        if self.nats_url and self.nats_port:
            raise ConfigError("--nats-port is for the server that the launcher starts: leave it out with --nats-url")


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that was asked for."""

    own: LaunchConfig
    gateway: GatewayConfig
    tokenizer: TokenizerConfig
    vision: VisionConfig
    scheduler: SchedulerConfig
    worker: WorkerConfig


def parse(argv: Sequence[str] | None = None) -> Launch:
    """Command line and environment to a `Launch`; a wrong flag ends the process with status 2 and the reason."""
    parser = new_parser(
        "python -m rhizome.launch_server",
        "Start a whole deployment on this machine: NATS, gateways, tokenizers, a scheduler, engines.",
    )
    parser.usage = f"{parser.prog} [--model-path PATH|ID] [--port N] [--tp-size N] [flag ...]"
    try:
        add_flags(parser, LaunchConfig, *SERVICE_CONFIGS.values(), skip=_SET_BY_LAUNCHER)
        args = parser.parse_args(argv)
        for cls in SERVICE_CONFIGS.values():
            for f, _ in flat_fields(cls):
                if f.name in _SET_BY_LAUNCHER:
                    setattr(args, f.name, f.default)
        if args.tp_size > 1:
            args.dist_init_addr = "127.0.0.1:1"  # replaced by a free port at every start of an engine
        return Launch(
            from_namespace(LaunchConfig, args),
            from_namespace(GatewayConfig, args),
            from_namespace(TokenizerConfig, args),
            from_namespace(VisionConfig, args),
            from_namespace(SchedulerConfig, args),
            from_namespace(WorkerConfig, args),
        )
    except ConfigError as fault:
        parser.error(fault.message)
