"""Lets every peer compress the demo model; what is whole already is left alone."""

import subprocess
from pathlib import Path

from benchmarks.peers.calibration import write_calibration
from benchmarks.peers.environments import WORK, Environment, run_here
from benchmarks.peers.llamacpp import TOOLS
from compression.demo_model import ensure_demo_model

NAMES = ("nf4", "hqq", "gptq")


def main(work: Path = WORK) -> None:
    """Run the peers one after the other."""
    checkpoint = ensure_demo_model()
    work.mkdir(parents=True, exist_ok=True)
    write_calibration(checkpoint, work)
    for name in NAMES:
        environment = Environment(name, work)
        environment.ensure()
        environment.quantize(checkpoint)
    build = Path(__file__).with_name("llamacpp_build.sh")
    subprocess.run([str(build), str(work / TOOLS)], check=True)
    run_here("benchmarks.peers.llamacpp", str(checkpoint), str(work))


if __name__ == "__main__":
    main()
