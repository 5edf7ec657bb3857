"""Clients of a tunnel to an echo server: so many new connections a second, until standard input ends.

Prints a line of JSON for each: when it began (the monotonic clock), how long it took, what went wrong and where.
"""

import asyncio
import json
import os
import sys
import time

PATIENCE = 90


async def once(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    try:
        sent = os.urandom(32)
        writer.write(sent)
        got = await reader.readexactly(len(sent))
        return None if got == sent else "the echo differs"
    finally:
        writer.close()


async def attempt(host, port):
    began = time.monotonic()
    try:
        failure = await asyncio.wait_for(once(host, port), PATIENCE)
    except ConnectionRefusedError:
        failure = "refused"
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        failure = type(error).__name__
    except asyncio.TimeoutError:
        failure = f"no answer within {PATIENCE} s"
    print(json.dumps([began, time.monotonic() - began, failure]), flush=True)


async def main(host, port, rate):
    loop = asyncio.get_running_loop()
    over = loop.run_in_executor(None, sys.stdin.read)
    clients, next_one = set(), loop.time()
    while not over.done():
        client = asyncio.create_task(attempt(host, port))
        clients.add(client)
        client.add_done_callback(clients.discard)
        next_one += 1 / rate
        await asyncio.sleep(max(0, next_one - loop.time()))
    await asyncio.gather(*clients)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
