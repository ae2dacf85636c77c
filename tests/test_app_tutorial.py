"""docs/app.md does what it says: its files are written, its commands run in order, and they print what stands there."""

import re
import subprocess
from pathlib import Path

from .test_readme import commands, told

TUTORIAL = (Path(__file__).parent.parent / "docs" / "app.md").read_text(encoding="utf-8")


def printed(output: str) -> str:
    """What was told, without the moments and durations of the log's line."""
    output = re.sub(r"saved=\S+|ms=[\d.]+|in [\d.]+s$", "VARYING", output.rstrip())
    return told(re.sub(r"\.+ *\[100%\]", "", output))


def test_every_file_and_command_of_the_tutorial_does_what_it_says(
    tutorial_environment: dict[str, str], tmp_path: Path
) -> None:
    blocks = re.findall(r"^```(python|console)\n(.*?)^```$", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 10
    for language, block in blocks:
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", block)
            if name is not None:
                (tmp_path / name[1]).write_text(block)
            continue
        for command, expected in commands(block):
            done = subprocess.run(
                ["sh", "-c", command],
                env=tutorial_environment,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert printed(done.stdout + done.stderr) == printed(expected)
