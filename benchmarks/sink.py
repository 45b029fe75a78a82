"""An SMTP server that takes every mail and keeps nothing but who it was for, and when it arrived.

Prints its two ports, ``SMTP CONTROL``. On the control port it answers each line with a line of JSON: ``count`` with the
number of mails, their bytes and the last one's arrival, ``arrivals`` with [recipient, time] of each; ``reset`` forgets
them; ``pause SECONDS`` has each mail's acceptance wait so long from now on. Times are CLOCK_MONOTONIC, which all
processes of a machine share.
"""

import asyncio
import json
import time

arrivals: list[tuple[str, float]] = []
size = 0
pause = 0.0

HELLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n"
END = b"\r\n.\r\n"


class Smtp(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.received = bytearray()
        self.in_data = False
        self.recipient = ""
        transport.write(b"220 sink\r\n")

    def data_received(self, data):
        """Take in all that is complete; the answers to commands that came together go out together."""
        global size
        received = self.received
        received += data
        answers, took_one = b"", False
        while received:
            if self.in_data:
                end = received.find(END, max(0, len(received) - len(data) - len(END)))
                if end < 0:
                    break
                arrivals.append((self.recipient, time.monotonic()))
                size += end
                del received[: end + len(END)]
                self.in_data = False
                data = received
                answers += b"250 taken\r\n"
                took_one = True
                continue
            line, found, _ = received.partition(b"\r\n")
            if not found:
                break
            del received[: len(line) + 2]
            answers += self.answer(bytes(line))
        if answers and took_one and pause:
            asyncio.get_running_loop().call_later(pause, self.transport.write, answers)
        elif answers:
            self.transport.write(answers)
        if answers.endswith(b"221 bye\r\n"):
            self.transport.close()

    def answer(self, line):
        verb = line[:4].upper()
        if verb == b"RCPT":
            self.recipient = line.partition(b"<")[2].partition(b">")[0].decode()
        if verb == b"DATA":
            self.in_data = True
            return b"354 go on\r\n"
        if verb in (b"MAIL", b"RCPT", b"RSET", b"NOOP", b"HELO"):
            return b"250 ok\r\n"
        return {b"EHLO": HELLO, b"QUIT": b"221 bye\r\n"}.get(verb, b"502 unknown\r\n")


async def control(reader, writer):
    global size, pause
    while line := (await reader.readline()).strip():
        answer = None
        if line == b"count":
            answer = {"mails": len(arrivals), "bytes": size, "last": arrivals[-1][1] if arrivals else None}
        elif line == b"arrivals":
            answer = arrivals
        elif line == b"reset":
            arrivals.clear()
            size = 0
        elif line.startswith(b"pause"):
            pause = float(line.split()[1])
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    writer.close()


async def main():
    loop = asyncio.get_running_loop()
    smtp = await loop.create_server(Smtp, "127.0.0.1", 0, backlog=1024)
    asker = await asyncio.start_server(control, "127.0.0.1", 0, limit=2**16)
    print(smtp.sockets[0].getsockname()[1], asker.sockets[0].getsockname()[1], flush=True)
    await asyncio.gather(smtp.serve_forever(), asker.serve_forever())


asyncio.run(main())
