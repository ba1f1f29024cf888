"""Two hosts of one machine: network namespaces with a cable between them, `torchrun` in each. Linux, root, iproute2.

    python scripts/two_hosts.py [--ranks 2] [--rate 1gbit] train DATA -o RUN ...      any command of clm, on both hosts
    python scripts/two_hosts.py --check [--rate 1gbit] [--tight] [--apart]            the bundled scene: one model with one process?

With --check it says what crossed the network per image and how long it took; the model grows twice, and is measured while it
trains. --tight has every rank's rows on disk and its views in pieces; the one process has everything in memory. --apart gives the
second host a folder of its own, as if its disk were another: its rows pass through the first one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_parts.ranks import sorted_rows

ROOT = Path(__file__).resolve().parents[1]
PORT = 29400
GROWING = {
    "iterations": 120, "batch_size": 4, "downscale": 4, "save_every": 40, "test_every": 8,
    "densify_from": 10, "densify_every": 40, "densify_until": 100, "grow_screen_gradient": 4e-4,
}  # fmt: skip
TIGHT = {"offload": "disk", "gpu_memory": "2MiB"}


@dataclass(frozen=True)
class Host:
    """A network namespace with an address."""

    name: str
    address: str
    number: int

    def start(self, words: list[str], ranks: int, log: Path, *torchrun: str) -> subprocess.Popen[bytes]:
        """`clm WORDS` in so many ranks of this host."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", str(ranks), "--local-addr", self.address, "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"{FIRST}:{PORT}", "--rdzv-conf", f"is_host={int(self.number == 0)}", *torchrun]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        with open(log, "wb") as file:
            return subprocess.Popen(
                [*command, "-m", "clm", *words], stdout=file, stderr=subprocess.STDOUT, env=environment
            )


FIRST, SECOND = "10.77.0.1", "10.77.0.2"


@contextmanager
def two_hosts(rate: str | None = None) -> Iterator[list[Host]]:
    """Both hosts, connected. rate: of the cable each way, as tc writes it; None: as fast as the machine."""
    hosts = [
        Host(f"clm{side}{os.getpid()}", address, k) for k, (side, address) in enumerate((("A", FIRST), ("B", SECOND)))
    ]
    ends = [f"v{host.name}"[:15] for host in hosts]
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends, strict=True):
            ip("link", "set", end, "netns", host.name)
            inside = ("-n", host.name)
            ip(*inside, "link", "set", end, "name", "eth0")
            ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip(*inside, "link", "set", device, "up")
            if rate is not None:
                shape = ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"]
                subprocess.run(
                    ["ip", "netns", "exec", host.name, "tc", "qdisc", "add", "dev", "eth0", "root", *shape], check=True
                )
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], stderr=subprocess.DEVNULL)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def run_on_both(
    hosts: list[Host], words: list[str], ranks: int, folder: Path, seconds: float, apart: bool = False
) -> list[int]:
    """Exit codes of torchrun on both; logs in `folder`."""
    started = []
    for host in reversed(hosts):
        theirs = [*words, "-o", str(folder / f"disk{host.number}" / "run")] if apart else words
        started.append(host.start(theirs, ranks, folder / f"host{host.number}.log"))
    try:
        return [process.wait(seconds) for process in reversed(started)]
    finally:
        for process in started:
            process.kill()


def check(ranks: int, rate: str | None, apart: bool, tight: bool) -> int:
    """The bundled scene on one process, and on two hosts."""
    options = ["--threads", "1", "-q", "--config"]
    with tempfile.TemporaryDirectory(prefix="clm-two-hosts-") as scratch:
        folder = Path(scratch)
        roomy, narrow = folder / "roomy.yaml", folder / "tight.yaml"
        roomy.write_text(json.dumps(GROWING))
        narrow.write_text(json.dumps({**GROWING, **TIGHT}))
        train = ["train", str(ROOT / "data" / "demo"), *options]
        alone = subprocess.run(
            [sys.executable, "-m", "clm", *train, str(roomy), "-o", str(folder / "alone")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        words = [*train, str(narrow if tight else roomy)]
        words = words if apart else [*words, "-o", str(folder / "run")]
        with two_hosts(rate) as hosts:
            codes = run_on_both(hosts, words, ranks, folder, 600, apart)
        run = folder / "disk0" / "run" if apart else folder / "run"
        if alone.returncode or any(codes):
            print(*(path.read_text(errors="replace") for path in folder.glob("host*.log")), sep="\n")
            print(f"ended with {alone.returncode}, {codes}")
            return 1
        model = sorted_rows(ply_of(run)) == sorted_rows(ply_of(folder / "alone"))
        measured = [json.loads((each / "metrics.json").read_text()) for each in (run, folder / "alone")]
        figures = all(measured[0][part] == measured[1][part] for part in ("train", "test", "num_gaussians"))
        report = json.loads((run / "report.json").read_text())
        network = report["ranks"]["network"]
        print(
            f"two hosts with {ranks} ranks each, cable {rate or 'unlimited'}, {'separate disks' if apart else 'one disk'}: "
            f"{'rows on disk, views in pieces, ' if tight else ''}{measured[0]['num_gaussians']:,} Gaussians: "
            f"{'the same model' if model else 'ANOTHER MODEL'} as one process, bit for bit, "
            f"and {'the same' if figures else 'OTHER'} metrics; {network['bytes_per_image'] / 1e3:.1f} kB per image, "
            f"{report['images_per_second']:.1f} images/s"
        )
        return 0 if model and figures else 1


def ply_of(run: Path) -> Path:
    return next(run.glob("point_cloud/iteration_*/point_cloud.ply"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="the bundled scene: is the model that of one process?")
    parser.add_argument("--ranks", type=int, default=1, help="of each host")
    parser.add_argument("--rate", help="of the cable, such as 1gbit")
    parser.add_argument("--tight", action="store_true", help="--check: rows on disk, and views in pieces")
    parser.add_argument("--apart", action="store_true", help="--check: each host has a disk of its own")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="a command of clm")
    options = parser.parse_args()
    if os.geteuid() != 0 or not Path("/proc/self/ns/net").exists():
        raise SystemExit("Network namespaces need Linux and root.")
    if options.check:
        return check(options.ranks, options.rate, options.apart, options.tight)
    with two_hosts(options.rate) as hosts:
        folder = Path(tempfile.mkdtemp(prefix="clm-two-hosts-"))
        print(f"logs: {folder}")
        return max(run_on_both(hosts, options.words, options.ranks, folder, 1e6))


if __name__ == "__main__":
    sys.exit(main())
