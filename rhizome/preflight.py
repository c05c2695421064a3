"""What can be known to be wrong before anything starts: ports, files, numbers that do not fit the model."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from rhizome.launch_config import Launch
from shared.errors import ConfigError
from shared.held_folder import memory_root
from shared.model_config import load_model_config


def check_machine(launch: Launch) -> None:
    """Ports and files, before the model is fetched.

    Raises:
        ConfigError: naming the flag and what to change.
    """
    gateway, own = launch.gateway, launch.own
    if gateway.port == 0 and own.num_gateways > 1:
        raise ConfigError(f"--port 0 with --num-gateways {own.num_gateways}: give the first port of the range")
    if gateway.port + own.num_gateways - 1 > 65535:
        raise ConfigError(f"--num-gateways {own.num_gateways}: ports from {gateway.port} up do not suffice")
    for port in range(gateway.port, gateway.port + own.num_gateways):
        _check_port(gateway.host, port, "--port")
    if not own.nats_url:
        _check_port("127.0.0.1", own.nats_port, "--nats-port")
    _check_template(launch.tokenizer.chat_template)
    if gateway.api_key_file and not Path(gateway.api_key_file).is_file():
        raise ConfigError(f"--api-key-file {gateway.api_key_file}: no such file")
    if own.log_dir:
        _check_log_dir(Path(own.log_dir))
    memory_root(launch.vision.shared_memory_dir)


def check_model(launch: Launch, folder: Path) -> None:
    """Numbers that must fit the model.

    Raises:
        ConfigError: naming the flag and what the model allows.
    """
    model = load_model_config(folder, launch.tokenizer.context_length)
    if not heads_divide(model.num_q_heads, model.num_kv_heads, launch.own.tp_size):
        raise ConfigError(
            f"--tp-size {launch.own.tp_size} does not fit the model's {model.num_q_heads} query and "
            f"{model.num_kv_heads} key-value heads: use 1 to {model.num_kv_heads}, or a multiple of "
            f"{model.num_kv_heads} that divides {model.num_q_heads}"
        )


def heads_divide(num_q_heads: int, num_kv_heads: int, tp_size: int) -> bool:
    """Whether each rank can have whole key-value heads, or each key-value head can be on whole ranks."""
    if tp_size <= num_kv_heads:
        return True
    return tp_size % num_kv_heads == 0 and num_q_heads % tp_size == 0


def _check_port(host: str, port: int, flag: str) -> None:
    if port == 0:
        return
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as fault:
        raise ConfigError(f"--host {host}: {fault.strerror or fault}") from fault
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as fault:
            reason = fault.strerror or str(fault)
            raise ConfigError(f"{flag} {port} on {host}: {reason}. Stop what uses it or choose another") from fault


def _check_template(template: str) -> None:
    looks_like_file = "/" in template or template.endswith((".jinja", ".jinja2", ".json"))
    if looks_like_file and not Path(template).is_file():
        raise ConfigError(f"--chat-template {template}: no such file")


def _check_log_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ConfigError(f"--log-dir {folder}: {fault.strerror}") from fault
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--log-dir {folder}: not writable")
