"""What a machine tries. Only the outside judges what came of it; what is printed here is for people."""
import base64, concurrent.futures, hashlib, json, os, socket, ssl, struct, subprocess, sys, threading, time

CA = '/root/ca.pem'
GATEWAY = [line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')][0]
PATIENCE = 1.2


def quietly(work):
    """The result, or None when the network said no."""
    try:
        return work()
    # Of nothing, where a connection should be.
    except (OSError, ValueError, EOFError, AttributeError):
        return None


def together(*works):
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        return list(pool.map(lambda work: quietly(work), works))


def tcp(host, port, patience=PATIENCE):
    return quietly(lambda: socket.create_connection((host, port), patience))


def touch(host, port, text=b'hello'):
    """Connects, says something, and hears a little."""
    stream = tcp(host, port)
    if stream is None:
        return b''
    with stream:
        quietly(lambda: stream.sendall(text))
        return hear(stream)


def hear(stream, patience=PATIENCE):
    stream.settimeout(patience)
    return quietly(lambda: stream.recv(65536)) or b''


def udp(host, port, text=b'hello', patience=0.5, listen=True):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(patience)
        if quietly(lambda: sender.sendto(text, (host, port))) is None or not listen:
            return b''
        return quietly(lambda: sender.recv(4096)) or b''


def context(alpn=None):
    made = ssl.create_default_context(cafile=CA)
    if alpn:
        made.set_alpn_protocols(alpn)
    return made


def tls(host, sni=None, port=443, stream=None, alpn=None):
    stream = stream or tcp(host, port)
    if stream is None:
        return None
    stream.settimeout(3)
    made = context(alpn)
    if sni == '':
        made.check_hostname = False
        return quietly(lambda: made.wrap_socket(stream))
    return quietly(lambda: made.wrap_socket(stream, server_hostname=sni or host))


def request(host, path, extra='', method='GET'):
    return f'{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n'.encode()


def ask(stream, data):
    """Sends a request and hears one answer."""
    if stream is None:
        return ''
    if isinstance(data, str):
        data = data.encode()
    # A refusal may come before everything was sent.
    quietly(lambda: stream.sendall(data))
    answer = b''
    while b'\r\n\r\n' not in answer:
        more = hear(stream, 2.5)
        if not more:
            return answer.decode(errors='replace')
        answer += more
    head, _, body = answer.partition(b'\r\n\r\n')
    length = [int(line.split(b':')[1]) for line in head.split(b'\r\n') if line.lower().startswith(b'content-length:')]
    while length and len(body) < length[0]:
        more = hear(stream, 2.5)
        if not more:
            break
        body += more
    return (head + b'\r\n\r\n' + body).decode(errors='replace')


def proxied(target, host=None, extra=''):
    """A CONNECT: the stream and what the proxy said."""
    stream = tcp(GATEWAY, 3128)
    said = ask(stream, f'CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n{extra}\r\n')
    return stream, said.split('\r\n')[0]


# What a tool sees that knows nothing of a proxy.
PLAIN = {key: value for key, value in os.environ.items() if not key.lower().endswith('_proxy')}


def curl(*arguments, patience=4):
    made = subprocess.run(['curl', '-sS', '--cacert', CA, '--max-time', str(patience), *arguments], env=PLAIN,
                          capture_output=True, text=True, errors='replace')
    return made.stdout + made.stderr


def spelled(name):
    return [label.encode() for label in name.rstrip('.').split('.')]


def lookup(name, kind=1, server=None, over_tcp=False, labels=None, patience=PATIENCE):
    """One question with EDNS: the status, the answers and the extended errors (RFC 8914)."""
    labels = labels if labels is not None else spelled(name)
    question = b''.join(bytes([len(label)]) + label for label in labels) + b'\0' + struct.pack('!HH', kind, 1)
    number = int.from_bytes(os.urandom(2), 'big')
    query = struct.pack('!HHHHHH', number, 0x0100, 1, 0, 0, 1) + question + b'\0' + struct.pack('!HHIH', 41, 1232, 0, 0)
    server = server or GATEWAY
    family = socket.AF_INET6 if ':' in server else socket.AF_INET

    def exchange():
        with socket.socket(family, socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM) as stream:
            stream.settimeout(patience)
            stream.connect((server, 53))
            if not over_tcp:
                stream.send(query)
                return stream.recv(4096)
            stream.sendall(struct.pack('!H', len(query)) + query)
            length = struct.unpack('!H', stream.recv(2))[0]
            answer = b''
            while len(answer) < length:
                more = stream.recv(length - len(answer))
                if not more:
                    raise EOFError
                answer += more
            return answer
    answer = quietly(exchange)
    return read_answer(answer) if answer else None


def skip_name(data, at):
    while data[at]:
        if data[at] >= 192:
            return at + 2
        at += data[at] + 1
    return at + 1


def read_answer(data):
    _, flags, questions, *counts = struct.unpack('!HHHHHH', data[:12])
    at, found = 12, {'status': flags & 15, 'answers': [], 'errors': [], 'authority': counts[1], 'question': ''}
    for _ in range(questions):
        end = skip_name(data, at)
        found['question'] = data[at:end].decode('latin-1')
        at = end + 4
    for place in range(sum(counts)):
        at = skip_name(data, at)
        kind, _, ttl, length = struct.unpack('!HHIH', data[at:at + 10])
        body = data[at + 10:at + 10 + length]
        at += 10 + length
        if kind == 1:
            found['answers'].append(socket.inet_ntoa(body))
        elif kind == 28:
            found['answers'].append(socket.inet_ntop(socket.AF_INET6, body))
        elif kind == 41:
            while body:
                code, size = struct.unpack('!HH', body[:4])
                if code == 15:
                    found['errors'].append([struct.unpack('!H', body[4:6])[0], body[6:4 + size].decode()])
                body = body[4 + size:]
        elif place < counts[0]:
            found['answers'].append(f'{kind}:{body.hex()}')
    return found


def hello(sni, extensions=(), share=(29, 32)):
    """A ClientHello of TLS 1.3 by hand (RFC 8446 §4.1.2)."""
    def extension(kind, data):
        return struct.pack('!HH', kind, len(data)) + data
    made = b''
    if sni is not None:
        name = sni.encode()
        made += extension(0, struct.pack('!HBH', len(name) + 3, 0, len(name)) + name)
    made += extension(10, struct.pack('!HHH', 4, share[0], 29))
    made += extension(13, struct.pack('!HHHH', 6, 0x0403, 0x0804, 0x0807))
    made += extension(43, struct.pack('!BH', 2, 0x0304))
    key = os.urandom(share[1])
    made += extension(51, struct.pack('!HHH', len(key) + 4, share[0], len(key)) + key)
    for kind, data in extensions:
        made += extension(kind, data)
    body = b'\x03\x03' + os.urandom(32) + b'\x20' + os.urandom(32) + struct.pack('!HHH', 4, 0x1301, 0x1303)
    body += b'\x01\x00' + struct.pack('!H', len(made)) + made
    handshake = b'\x01' + len(body).to_bytes(3, 'big') + body
    return b'\x16\x03\x01' + struct.pack('!H', len(handshake)) + handshake


def shaped(stream, sni, shape, path, alpn=None):
    """A whole handshake whose first flight is sent by `shape`, and one request."""
    if stream is None:
        return ''
    stream.settimeout(3)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = context(alpn).wrap_bio(come, go, server_hostname=sni)

    def work():
        first = True
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            data = go.read()
            if data and first:
                shape(stream, data)
                first = False
            elif data:
                stream.sendall(data)
            more = stream.recv(65536)
            if not more:
                raise EOFError
            come.write(more)
        inside.write(request(sni, path))
        stream.sendall(go.read())
        while True:
            try:
                return inside.read(65536).decode(errors='replace')
            except ssl.SSLWantReadError:
                more = stream.recv(65536)
                if not more:
                    raise EOFError
                come.write(more)
    return quietly(work) or ''


def byte_by_byte(stream, data):
    for place in range(len(data)):
        stream.sendall(data[place:place + 1])


def in_records(stream, data):
    """The same handshake message in records of 20 bytes (RFC 8446 §5.1)."""
    message, out = data[5:], b''
    for place in range(0, len(message), 20):
        piece = message[place:place + 20]
        out += data[:3] + struct.pack('!H', len(piece)) + piece
    stream.sendall(out)


def websocket(stream, host, path='/ws'):
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f'Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n'
    said = ask(stream, request(host, path, upgrade))
    return said.startswith('HTTP/1.1 101')


def message(stream, text):
    """One masked text message, and the one that comes back."""
    data, mask = text.encode(), os.urandom(4)
    stream.sendall(bytes([0x81, 0x80 | len(data)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
    answer = hear(stream, 2)
    return answer[2:].decode(errors='replace') if answer else ''


def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def own_address(v6=False):
    family, target = (socket.AF_INET6, '2001:db8::1') if v6 else (socket.AF_INET, '192.0.2.1')
    for line in subprocess.run(['ip', '-o', '-6' if v6 else '-4', 'addr', 'show', 'dev', 'eth0', 'scope', 'global'],
                               capture_output=True, text=True).stdout.splitlines():
        return line.split()[3].split('/')[0]


ROUTER = bytes.fromhex('027700000001')


def link():
    stream = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    stream.bind(('eth0', 0))
    return stream, stream.getsockname()[4]


def ip4(to, protocol, payload, source=None, fragment=0, options=b'', number=None):
    source = source or own_address()
    words = 5 + len(options) // 4
    number = number if number is not None else int.from_bytes(os.urandom(2), 'big')
    head = struct.pack('!BBHHHBBH4s4s', 0x40 | words, 0, words * 4 + len(payload), number, fragment, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to)) + options
    return head[:10] + struct.pack('!H', checksum(head)) + head[12:] + payload


def ip6(to, protocol, payload, source=None):
    source = source or own_address(True)
    return struct.pack('!IHBB', 0x60000000, len(payload), protocol, 64) + socket.inet_pton(
        socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to) + payload


def frame(packet, mac=None):
    stream, own = link()
    kind = b'\x08\x00' if packet[0] >> 4 == 4 else b'\x86\xdd'
    with stream:
        quietly(lambda: stream.send(ROUTER + (mac or own) + kind + packet))


def datagram(port, text, source=4000, ends=None):
    """UDP; with `ends` (two IPv6 addresses) also its checksum, which IPv6 wants."""
    made = struct.pack('!HHHH', source, port, 8 + len(text), 0) + text
    if ends:
        pseudo = b''.join(socket.inet_pton(socket.AF_INET6, end) for end in ends) + struct.pack('!II', len(made), 17)
        made = made[:6] + struct.pack('!H', checksum(pseudo + made) or 0xffff) + made[8:]
    return made


def syn(port, flags=2, source=4001, ends=None):
    made = struct.pack('!HHIIBBHHH', source, port, 1, 0, 0x50, flags, 65535, 0, 0)
    family = socket.AF_INET6 if ':' in ends[0] else socket.AF_INET
    packed = b''.join(socket.inet_pton(family, end) for end in ends)
    pseudo = packed + (struct.pack('!II', len(made), 6) if ':' in ends[0] else struct.pack('!BBH', 0, 6, len(made)))
    return made[:16] + struct.pack('!H', checksum(pseudo + made)) + made[18:]
