//! A machine with root sends what it likes; only what is its own passes.

mod common;

use std::time::Duration;

use common::{Server, eventually, text};

/// Sends raw Ethernet frames from a machine; `{frame}` is a Python expression for the bytes.
fn send(server: &Server, machine: &str, frame: &str) {
    let script = format!(
        "import socket,struct\n\
         def ip4(a): return socket.inet_aton(a)\n\
         def ip6(a): return socket.inet_pton(socket.AF_INET6,a)\n\
         s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW)\n\
         s.bind(('eth0',0))\n\
         own=s.getsockname()[4]\n\
         router=bytes.fromhex('027700000001')\n\
         def checksum(b):\n\
         \x20 t=sum(struct.unpack('!%dH'%(len(b)//2),b))\n\
         \x20 t=(t>>16)+(t&0xffff); t+=t>>16\n\
         \x20 return ~t&0xffff\n\
         def udp4(src,dst,mac=None,payload=b'spoof'):\n\
         \x20 u=struct.pack('!HHHH',1,9,8+len(payload),0)+payload\n\
         \x20 h=struct.pack('!BBHHHBBH4s4s',0x45,0,20+len(u),0,0,64,17,0,ip4(src),ip4(dst))\n\
         \x20 h=h[:10]+struct.pack('!H',checksum(h))+h[12:]\n\
         \x20 return router+(mac or own)+b'\\x08\\x00'+h+u\n\
         def udp6(src,dst,payload=b'spoof6'):\n\
         \x20 u=struct.pack('!HHHH',1,9,8+len(payload),1)+payload\n\
         \x20 return router+own+b'\\x86\\xdd'+struct.pack('!IHBB',0x60000000,len(u),17,64)+ip6(src)+ip6(dst)+u\n\
         for i in range(5): s.send({frame})\n"
    );
    server.ok(&["exec", machine, "--", "python3", "-c", &script]);
}

/// Every packet, in hexadecimal, that reaches a machine's interface while `send` sends.
///
/// Packets of one link stay in order, so when the last one, which nothing forbids, has arrived, so has all before it.
fn received(server: &Server, machine: &str, send_them: impl FnOnce()) -> String {
    server.exec(
        machine,
        "cat > /root/listen.py <<'X'\n\
         import os,socket\n\
         s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3)); s.bind(('eth0',0)); s.settimeout(30)\n\
         open('/root/listens','w').close()\n\
         with open('/root/hears','w') as heard:\n\
         \x20 while True:\n\
         \x20   b,a=s.recvfrom(2048)\n\
         \x20   if a[2]==4: continue\n\
         \x20   print(b.hex(),file=heard,flush=True)\n\
         \x20   if b'the last one' in b: break\n\
         os.rename('/root/hears','/root/heard')\n\
         X\n\
         rm -f /root/listens /root/heard\n\
         nohup python3 /root/listen.py >/dev/null 2>&1 &\n\
         while ! test -e /root/listens; do sleep 0.02; done",
    );
    send_them();
    send(server, "a", "udp4('10.0.1.10','10.0.1.11',payload=b'the last one')");
    assert!(eventually(Duration::from_secs(30), || server.try_exec(machine, "test -e /root/heard").0 == 0));
    server.exec(machine, "cat /root/heard")
}

#[test]
fn only_a_machines_own_addresses_pass_its_port() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let victim = server.json(&["machine", "create", "b"]);
    let victim6 = victim["private_ip6"].as_str().unwrap().to_owned();
    let own6 = server.json(&["machine", "show", "a"])["private_ip6"].as_str().unwrap().to_owned();

    // The control: its own packets arrive.
    let heard = received(&server, "b", || {
        send(&server, "a", "udp4('10.0.1.10','10.0.1.11',payload=b'honest4')");
        send(&server, "a", &format!("udp6('{own6}','{victim6}',payload=b'honest6')"));
    });
    assert!(heard.contains(&hex("honest4")) && heard.contains(&hex("honest6")), "the control was not heard: {heard}");

    let heard = received(&server, "b", || {
        send(&server, "a", "udp4('10.0.1.99','10.0.1.11')");
        send(&server, "a", "udp4('10.0.0.1','10.0.1.11')");
        send(&server, "a", "udp4('10.0.1.10','10.0.1.11',mac=bytes.fromhex('026d00000003'))");
        send(&server, "a", &format!("udp6('{victim6}','{victim6}')"));
        send(&server, "a", &format!("udp6('fd00::1','{victim6}')"));
        send(&server, "a", &format!("udp6('fe80::99','{victim6}')"));
        // Forged ARP: "10.0.1.11 is at my address", to the router and to everybody.
        send(
            &server,
            "a",
            "router+own+b'\\x08\\x06'+struct.pack('!HHBBH',1,0x800,6,4,2)+own+ip4('10.0.1.11')+router+ip4('10.0.0.1')",
        );
        send(
            &server,
            "a",
            "b'\\xff'*6+own+b'\\x08\\x06'+struct.pack('!HHBBH',1,0x800,6,4,1)+own+ip4('10.0.1.11')+b'\\0'*6+ip4('10.0.1.11')",
        );
    });
    assert!(!heard.contains(&hex("spoof")), "a spoofed packet arrived: {heard}");

    // And nobody believed the ARP: the victim is still met.
    server.serve("b", "still-me");
    server.ok(&["machine", "create", "c"]);
    assert_eq!(server.fetch("c", "http://10.0.1.11:8080/"), "still-me");
    let rules = text(&server.in_router(1, &["nft", "list", "ruleset"]).stdout);
    assert!(rules.contains("counter"), "{rules}");
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
