"""Write `jars.toml` anew: `python -m infra.kafka.relock VERSION`."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import MavenContext, PythonResolver

from infra import atomic_file

LOCK_FILE = Path(__file__).with_name(
    "jars.toml"
)  # not from jars.py: that one needs a good lock to be imported
BROKER = "org.apache.kafka:kafka_2.13"
LOG_API = "org.apache.logging.log4j:log4j-core"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"
"""Kafka logs by slf4j and brings log4j, but not the piece between them: without it the broker is silent."""


def relock(version: str, path: Path = LOCK_FILE) -> int:
    """Resolve the broker of `version` afresh, write coordinates, sizes and SHA-256; the number of jars."""
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch), resolver=PythonResolver(), timeout=30)
        # Alone: a second root's managed versions win over Kafka's own (seen: kafka-clients 3.9, old lz4).
        roots, others = context.resolver.resolve([context.create_dependency(f"{BROKER}:{version}")])
        resolved = [*roots, *others]
        log_version = next(d.version for d in resolved if f"{d.groupId}:{d.artifactId}" == LOG_API)
        resolved.append(context.create_dependency(f"{LOG_BINDING}:{log_version}"))
        with ThreadPoolExecutor(8) as pool:
            files = list(pool.map(lambda dependency: dependency.artifact.resolve(), resolved))
        lines = [
            "# Written by `python -m infra.kafka.relock VERSION`; each start of the broker checks it.",
            f'kafka_version = "{version}"',
        ]
        for coordinate, file in sorted(
            (f"{d.groupId}:{d.artifactId}:{d.version}", file) for d, file in zip(resolved, files, strict=True)
        ):
            lines += [
                "",
                "[[jars]]",
                f'coordinate = "{coordinate}"',
                f"size_bytes = {file.stat().st_size}",
                f'sha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"',
            ]
    atomic_file.write_text(path, "\n".join([*lines, ""]))
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m infra.kafka.relock", description=__doc__)
    parser.add_argument("version", help="a released version of Apache Kafka, such as 4.4.0")
    print(f"{relock(parser.parse_args().version)} jars locked in {LOCK_FILE.name}")
