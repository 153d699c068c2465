"""A WebSocket from outside: says `open`, echoes a line a while, and says `cut` when it ends."""
import os, socket, ssl, sys

host, address, root = sys.argv[1:4]
context = ssl.create_default_context(cafile=root)
stream = context.wrap_socket(socket.create_connection((address, 443), 5), server_hostname=host)
stream.sendall((f'GET /socket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n').encode())
head = b''
while b'\r\n\r\n' not in head:
    head += stream.recv(1)
assert b' 101 ' in head.splitlines()[0], head


def echoes(text):
    key = os.urandom(4)
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(text))
    stream.sendall(bytes([0x81, 0x80 | len(text)]) + key + masked)
    answer = b''
    while len(answer) < 2 + len(text):
        more = stream.recv(2 + len(text) - len(answer))
        if not more:
            return False
        answer += more
    return answer == bytes([0x81, len(text)]) + text


stream.settimeout(30)
assert echoes(b'hello')
print('open', flush=True)
for line in sys.stdin:
    print('echo' if echoes(line.strip().encode()) else 'lost', flush=True)
try:
    print('cut' if stream.recv(1) == b'' else 'what', flush=True)
except (ConnectionError, ssl.SSLError):
    print('cut', flush=True)
