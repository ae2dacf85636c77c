"""docs/memcached.md: its server starts with its command and its client does what the comments say."""

import ast
import re
from pathlib import Path

from pymemcache.client.base import Client

from .support import ROOT, House

PAGE = (ROOT / "docs" / "memcached.md").read_text(encoding="utf-8")


def test_the_command_starts_a_server_and_the_client_does_what_its_comments_say(house: House, tmp_path: Path) -> None:
    [command] = re.findall(r"^\$ python -m apps\.memcached (.*)$", PAGE, flags=re.MULTILINE)
    words = command.replace("127.0.0.1:22122", "127.0.0.1:0").replace("shop.socket", str(tmp_path / "socket")).split()
    server = house.serve("shop", *words[words.index("--size") :])
    [address] = [where for where in server.where if ":" in where]
    [code] = [
        block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "gets" in block
    ]
    code = code.replace("127.0.0.1:22122", address)
    namespace: dict[str, object] = {"Client": Client}
    promised = 0
    for statement in ast.parse(code).body:
        comment = re.search(r"# (.+)$", code.splitlines()[statement.lineno - 1])
        if isinstance(statement, ast.Expr) and comment:
            found = eval(compile(ast.Expression(statement.value), "page", "eval"), namespace)
            assert repr(found) == comment[1]
            promised += 1
        else:
            exec(compile(ast.Module([statement], []), "page", "exec"), namespace)
    client = namespace["client"]
    assert isinstance(client, Client)
    client.close()
    assert promised == 2
