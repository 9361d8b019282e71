#!/usr/bin/env python3
"""Compares the store with other ways to keep a series of memory images, all on the same files.

    take-series.py GUEST redis SERIES/redis        (and compile, sql, script)
    cargo build --release -p simuboost-benches --bench series
    compare.py BENCH_BINARY WORK_DIR SERIES/redis SERIES/compile SERIES/sql SERIES/script

BENCH_BINARY is what cargo built, below target/release/deps. Per series: bytes of the increments (all
images but the first) of a `zstd -3 --long --patch-from` chain, of our store as recorded and after
`gc --recompress`, of borg (fixed,4096), restic and FastCDC; and how long an increment takes. Prints
JSON, and the geometric means against the chain at the end. WORK_DIR is emptied of what this makes.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent


def size(path):
    return sum(f.stat().st_size for f in pathlib.Path(path).rglob("*") if f.is_file())


def chain(series):
    line = subprocess.check_output(["sh", HERE / "zstd-chain.sh", series], text=True).split()
    return {"chain_increment_bytes": int(line[1]), "chain_ms_per_checkpoint": 1e3 * float(line[2])}


def backup(name, images, repository, environment, begin, save):
    """Bytes and time per increment of a backup program that takes image after image."""
    shutil.rmtree(repository, ignore_errors=True)
    environment = {**os.environ, **environment}
    run = lambda command, **more: subprocess.run(
        command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    run(begin)
    link = repository.parent / "image"
    took = 0.0
    for number, image in enumerate(images):
        # One path for all, as a user would save one memory file again and again.
        link.unlink(missing_ok=True)
        os.link(image, link)
        start = time.perf_counter()
        run(save(number), cwd=repository.parent)
        if number == 0:
            first = size(repository)
        else:
            took += time.perf_counter() - start
    link.unlink()
    increments = size(repository) - first
    shutil.rmtree(repository)
    return {f"{name}_increment_bytes": increments,
            f"{name}_ms_per_checkpoint": 1e3 * took / (len(images) - 1)}


def borg(images, work):
    place = work / "borg"
    return backup(
        "borg", images, place, {"BORG_BASE_DIR": str(work / "borg-home")},
        ["borg", "init", "-e", "none", place],
        lambda n: ["borg", "create", "--chunker-params", "fixed,4096", "-C", "zstd,3", f"{place}::{n}", "image"])


def restic(images, work):
    place = work / "restic"
    return backup(
        "restic", images, place, {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(work / "restic-cache")},
        ["restic", "-r", place, "init"],
        lambda n: ["restic", "-r", place, "backup", "image"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("series", nargs="+", type=pathlib.Path)
    parser.add_argument("--skip", nargs="*", default=[], choices=["borg", "restic"])
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = {}
    for series in options.series:
        images = sorted(series.resolve().glob("*.ram"))
        for part in ["store", "first"]:
            shutil.rmtree(work / part, ignore_errors=True)
        result = chain(series)
        result |= json.loads(subprocess.check_output([options.bench, series, work], text=True))
        result |= {} if "borg" in options.skip else borg(images, work)
        result |= {} if "restic" in options.skip else restic(images, work)
        results[series.name] = result
        print(json.dumps({series.name: result}), flush=True)
    for key in ["increment_bytes", "recompressed_increment_bytes"]:
        ratios = [r[key] / r["chain_increment_bytes"] for r in results.values()]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(json.dumps({f"{key}_to_chain_geometric_mean": round(mean, 3)}))


main()
