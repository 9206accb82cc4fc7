"""``page``: the local page; light, `composer.page` does the work."""

import secrets
import signal
import sys
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

GRACE = 2
"""Seconds for answers that are under way when the server ends."""


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

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: the folder is removed
    with socket.socket() as listening, temporary_folder() as folder:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HERE, port))  # before the model is loaded: the port may be taken
        listening.listen(128)
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        painter = BoardPainter(model.load(model.model, plugins), model, plugins, out)
        server = Server(painter, Path(folder))
        app = make_app(server, token, port)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
        server.is_ending = lambda: running.should_exit
        address = f"http://{HERE}:{port}/?token={token}"
        say(f"open {address}", "Ctrl-C ends it")
        sys.stdout.flush()  # whoever reads it waits for it
        if not no_browser:
            webbrowser.open(address)
        try:
            running.run(sockets=[listening])
        except KeyboardInterrupt:
            say("ended")
        finally:
            server.close()
