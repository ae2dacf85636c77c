"""docs/cache.md does what it says: its blocks are run in their order, and what they promise is compared."""

import json
import re
import subprocess
import sys
from pathlib import Path

from .test_readme import commands, told

TUTORIAL = (Path(__file__).parent.parent / "docs" / "cache.md").read_text(encoding="utf-8")

# Reads blocks, one a line, and runs them in one namespace; says what is wrong, or nothing. An expression that has "->"
# in its comment has to be worth what follows it.
READER = r"""
import ast, json, re, sys, traceback
namespace = {"__name__": "tutorial"}
for line in sys.stdin:
    block, wrong = json.loads(line), []
    try:
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), "cache.md", "eval"), namespace)
                promised = re.search(r"#.*?-> (.*)$", block.splitlines()[statement.end_lineno - 1])
                if promised and repr(value) != promised[1]:
                    wrong.append(f"{ast.unparse(statement)} is {value!r}, not {promised[1]}")
            else:
                exec(compile(ast.Module([statement], []), "cache.md", "exec"), namespace)
    except BaseException:
        wrong.append(f"{block}{traceback.format_exc()}")
    print(json.dumps(wrong), flush=True)
"""


def test_every_block_of_the_tutorial_runs_and_gives_what_it_promises(
    tutorial_environment: dict[str, str], tmp_path: Path
) -> None:
    blocks = re.findall(r"^```(python|console)\n(.*?)^```$", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"python", "console"}
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        env=tutorial_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for language, block in blocks:
            if language == "python":
                reader.stdin.write(json.dumps(block) + "\n")
                reader.stdin.flush()
                assert json.loads(reader.stdout.readline()) == []
            else:
                for command, expected in commands(block):
                    done = subprocess.run(
                        ["sh", "-c", command],
                        env=tutorial_environment,
                        cwd=tmp_path,
                        capture_output=True,
                        encoding="utf-8",
                        check=False,
                    )
                    assert done.returncode == 0, done.stderr
                    assert told(done.stdout + done.stderr) == told(expected)
        reader.stdin.close()
        assert reader.wait() == 0


def test_every_promise_of_the_tutorial_is_of_an_expression_that_is_looked_at() -> None:
    promises = [line for line in TUTORIAL.splitlines() if re.search(r"  # .*-> |  # -> ", line)]
    assert len(promises) > 40
    for line in promises:
        assert not re.match(r"\w+ = |    ", line), line
