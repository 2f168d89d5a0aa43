"""The demo: train, see what is wrong, let it be fixed, train again, see that it is right.

Runs nothing but the commands that a user would type, and stops if one of them does not do what it should.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TRAINSCOPE = [sys.executable, "-m", "trainscope"]


def main() -> None:
    folder = Path("demo") / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    faulty, fixed, config = folder / "1-as-configured", folder / "2-fixed", folder / "cfg.fixed.toml"

    say("1 of 4 · Train an innocent-looking configuration; the audit at its end says what is wrong")
    run("run", HERE / "cfg.toml", "--out", faulty)
    say("2 of 4 · Is that an error for a script, too? `audit` exits with 1")
    run("audit", faulty, "--format", "json", expected=1)
    say("3 of 4 · Write the corrected configuration")
    run("fix", faulty, "--output", config)
    say("4 of 4 · Train it, and fail if anything is wrong")
    run("run", config, "--out", fixed, "--fail-on", "warning")

    say("Done. The two reports, to open in a browser")
    print(f"  what was wrong:  {(faulty / 'report.html').resolve()}")
    print(f"  after the fix:   {(fixed / 'report.html').resolve()}")


def say(text: str) -> None:
    print(f"\n=== {text}\n", flush=True)


def run(*arguments: object, expected: int = 0) -> None:
    command = [str(argument) for argument in arguments]
    print("$ trainscope", *command, flush=True)
    code = subprocess.run([*TRAINSCOPE, *command], check=False).returncode
    if code != expected:
        sys.exit(f"trainscope {command[0]} exited with {code}, expected {expected}")


if __name__ == "__main__":
    main()
