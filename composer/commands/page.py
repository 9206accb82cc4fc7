"""``page``: the local page; light, `composer.page` does the work."""

import secrets
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from composer.commands.groups import ModelOptions
from composer.commands.signature import Value
from composer.commands.values import whole
from composer.terminal import say

HERE = "127.0.0.1"
"""The server listens on this machine only."""


def page(
    *,
    port: Annotated[int, Value(whole(0, 65_535), "P")] = 0,
    out: Annotated[Path, Value(Path, "DIR")] | None = None,
    no_browser: bool = False,
    model: ModelOptions,
    plugins: Sequence[str],
) -> None:
    """Open a page in the browser: take pictures apart, compose, edit, and see how well it came out.

    Only this machine can reach it, with the token in its address. Ctrl-C ends it.

    Args:
        port: where the server listens (default: any free port)
        out: folder to keep the results in (default: they are removed at the end; download what you want to keep)
        no_browser: print the address only

    Examples:
        --out out/page
        --model models/mine --port 8000 --no-browser
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise ValueError("the page needs its extra: pip install 'composer-diffusion[page]'") from error
    import socket

    from composer.commands.boards import BoardPainter
    from composer.page.server import Server, make_app, temporary_folder

    with socket.socket() as listening, temporary_folder() as folder:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HERE, port))  # before the model is loaded: the port may be taken
        listening.listen(128)
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        painter = BoardPainter(model.load(model.model, plugins), model, plugins, out)
        server = Server(painter, Path(folder))
        address = f"http://{HERE}:{port}/?token={token}"
        say(f"open {address}", "Ctrl-C ends it")
        if not no_browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            make_app(server, token, port), log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            server.close()
