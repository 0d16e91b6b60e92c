#!/usr/bin/env python3
"""Answers every request with its name, its port and how many requests it has answered."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

title = os.environ["TITLE"]
answered = 0


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        global answered
        answered += 1
        body = f"{title}, process {os.getpid()}, request {answered}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        print(format % args, flush=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page)
print(f"{title}: listening", flush=True)
server.serve_forever()
