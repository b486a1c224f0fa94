"""A team's remote: push the toy study, activations included, to a local S3 server with DVC's real client, and pull it.

Needs `pip install dvc-s3 'moto[server]'` in an environment of its own (they are not in the lock file), then
`PYTHONPATH=tests python -m benchmarks.s3_remote`. The last line is a JSON object.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from toy import CONFIG, Toy, make_toy

KEYS = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}


def main() -> None:
    """Serve, push, clone, pull, verify."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    ).create_bucket(Bucket="levelt")
    with tempfile.TemporaryDirectory(prefix="levelt-s3-") as name:
        toy = make_toy(Path(name) / "toy")
        assert toy.ledger("stages", "--local-only").returncode == 0  # activations too
        toy.dvc("remote", "add", "--default", "team", "s3://levelt/study")
        toy.dvc("remote", "modify", "team", "endpointurl", address)
        _credentials(toy)
        assert (done := toy.ledger("commit")).returncode == 0, done.stderr
        toy.save("a remote of our own")
        pushed = toy.dvc("push").strip().splitlines()[-1]
        clone = toy.clone(Path(name) / "clone")
        _credentials(clone)
        pulled = clone.dvc("pull").strip().splitlines()[-1]
        clone.shuffle_times(1)
        result = {
            "pushed": pushed,
            "pulled": pulled,
            "activations": (clone.path / "data/toy/activations/m/a.safetensors").is_file(),
            "nothing_to_be_done": "Nothing to be done" in clone.snakemake("--dry-run"),
            "findings": clone.findings(),
            "config": CONFIG,
        }
    server.stop()
    print(json.dumps(result))


def _credentials(toy: Toy) -> None:
    for key, value in KEYS.items():
        toy.dvc("remote", "modify", "--local", "team", key, value)


if __name__ == "__main__":
    main()
