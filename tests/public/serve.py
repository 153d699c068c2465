"""A web server with a WebSocket: says who it is and what it was asked, and echoes."""
import base64, hashlib, socket, struct, sys, threading

NAME, PORT = sys.argv[1], int(sys.argv[2])
BARRIERS = {}


def exactly(stream, count):
    data = b''
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def echo(stream):
    while True:
        first, length = exactly(stream, 2)
        key = exactly(stream, 4)
        data = bytes(byte ^ key[at % 4] for at, byte in enumerate(exactly(stream, length & 0x7f)))
        stream.sendall(bytes([first, len(data)]) + data)


def together(path):
    """For `/together/N/...`, waits until N requests for the path are here at once, and says whether they came."""
    if not path.startswith('/together/'):
        return True
    try:
        BARRIERS.setdefault(path, threading.Barrier(int(path.split('/')[2]))).wait(20)
        return True
    except threading.BrokenBarrierError:
        return False


def serve(stream):
    data = b''
    try:
        while True:
            while b'\r\n\r\n' not in data:
                more = stream.recv(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b'\r\n\r\n')
            lines = head.decode().split('\r\n')
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(':') for line in lines[1:])}
            if headers.get('upgrade', '').lower() == 'websocket':
                salt = headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
                accept = base64.b64encode(hashlib.sha1(salt.encode()).digest()).decode()
                stream.sendall(('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                                f'Sec-WebSocket-Accept: {accept}\r\n\r\n').encode())
                return echo(stream)
            body = '\n'.join([NAME, lines[0]] + sorted(f'{name}: {value}' for name, value in headers.items())) + '\n'
            status = '200 OK' if together(lines[0].split()[1]) else '503 Service Unavailable'
            stream.sendall(f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}'.encode())
    except (EOFError, OSError):
        pass
    finally:
        stream.close()


listener = socket.create_server(('', PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
