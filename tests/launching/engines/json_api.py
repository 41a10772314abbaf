"""A JSON API on loopback, for real clients."""

import http.server
import json
import threading
import urllib.parse


def serve(answer):
    """Starts a server, and returns it.

    Args:
        answer: called with method, path, query and body, one call at a time; returns status and
            document.
    """
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self):
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            url = urllib.parse.urlparse(self.path)
            with lock:
                code, document = answer(
                    self.command, url.path, urllib.parse.parse_qs(url.query), body
                )
            text = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = answer

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
