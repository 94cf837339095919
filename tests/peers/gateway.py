"""Runs the original's gateway, with the arguments of its command line.

The published package wants a plugin that was never published, for signing up, and does not start without it. Here it is
there and does nothing.
"""

import runpy

from aiohttp import web_app


class Hook:
    def __getattr__(self, name):
        async def nothing(*args, **kwargs):
            return None

        return nothing


UNPUBLISHED = {"hanati_hook": Hook()}

find = web_app.Application.__getitem__


def __getitem__(self, key):
    return UNPUBLISHED[key] if key in UNPUBLISHED else find(self, key)


web_app.Application.__getitem__ = __getitem__

if __name__ == "__main__":
    runpy.run_module("ai.backend.gateway.server", run_name="__main__", alter_sys=True)
