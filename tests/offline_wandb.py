"""What W&B has written without a network."""

import json
import struct


def scan(content):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; CRC, length, type) after 7 bytes."""
    whole, part, at = [], b"", 7
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            whole.append(part)
            part = b""
    return whole


def read_run(folder):
    """The one offline folder of a run: config, history rows and exit code."""
    (offline,) = (folder / "wandb").glob("offline-run-*")
    return read_offline(offline)


def read_offline(folder):
    """One offline folder, which `wandb sync` takes: config, history rows and exit code."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    config, history, exit_code = {}, [], None
    for data in scan(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            history.append(
                {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return config, history, exit_code
