"""Answers on every port, and writes down who came: `kind port text`."""
import selectors, socket

waiting, out = selectors.DefaultSelector(), open('/root/arrived', 'a', buffering=1)
for port in (7001, 7002, 7003):
    listener = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    waiting.register(listener, selectors.EVENT_READ, ('tcp', port))
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(('::', port))
    waiting.register(datagrams, selectors.EVENT_READ, ('udp', port))
open('/root/responds', 'w').close()
while True:
    for key, _ in waiting.select():
        kind, port = key.data
        if kind == 'udp':
            text, _ = key.fileobj.recvfrom(99)
            print(kind, port, text.decode(), file=out)
            continue
        stream, _ = key.fileobj.accept()
        stream.settimeout(0.5)
        try:
            print(kind, port, stream.recv(99).decode(), file=out)
        except OSError:
            pass
        stream.close()
