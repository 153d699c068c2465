//! What the kernel holds, without what moves by itself: counters, handles, use counts, members.

use nix::errno::Errno;

use crate::firewall::elements::{FAMILY_ANY, INET, get_kind, header, nfgen, set_elements};
use crate::netlink::{Attributes, Message, Socket, be32, text};

/// Sets whose elements never change; those of members and of policy are compared element by element.
pub(crate) const CONSTANT_SETS: [&str; 2] = ["not_global4", "not_global6"];

/// Those of the host's table.
const HOST_SETS: [&str; 6] = ["not_global4", "not_global6", "never4", "never6", "private4", "private6"];

/// `NFT_MSG_GETTABLE`, `…CHAIN`, `…RULE`, `…SET`, `…OBJ`, each with the attributes that matter; the first one names
/// the table.
const PARTS: [(u8, &[u16]); 5] = [
    // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS
    (1, &[1, 2]),
    // NFTA_CHAIN_TABLE, _NAME, _HOOK, _POLICY, _TYPE
    (4, &[1, 3, 4, 5, 7]),
    // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
    (RULE, &[1, 2, 4]),
    // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN
    (10, &[1, 2, 3, 4, 5]),
    // NFTA_OBJ_TABLE, _NAME, _TYPE
    (19, &[1, 2, 3]),
];

/// `NFT_MSG_GETRULE`.
const RULE: u8 = 7;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on: always the first.
const TABLE: u16 = 1;

/// The generation of the namespace's rules: it grows by one with every transaction.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, Errno> {
    // NFT_MSG_GETGEN, NFTA_GEN_ID
    let reply = socket.get(Message::new(get_kind(16), 0, &nfgen(FAMILY_ANY)))?;
    reply.attributes(4).find(1).and_then(be32).ok_or(Errno::EBADMSG)
}

/// What the kernel holds, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    /// Tables, chains, sets and counters, without the rules.
    pub(crate) skeleton: String,
    /// Everything, also what the constant sets hold.
    pub(crate) whole: String,
}

/// The digest of all tables, or of one; `None` when there is nothing.
pub(crate) fn digest(socket: &mut Socket, only: Option<&str>) -> Result<Option<Digest>, Errno> {
    let (mut skeleton, mut rules) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut any = false;
    for (kind, wanted) in PARTS {
        let hasher = if kind == RULE { &mut rules } else { &mut skeleton };
        for reply in socket.dump(Message::new(get_kind(kind), 0, &nfgen(FAMILY_ANY)))? {
            let attributes = reply.attributes(4);
            if only.is_some() && attributes.find(TABLE).and_then(text) != only {
                continue;
            }
            any = true;
            hasher.update(&[kind, reply.payload.first().copied().unwrap_or(0)]);
            for attribute in wanted {
                absorb(hasher, attributes, *attribute);
            }
        }
    }
    if !any {
        return Ok(None);
    }
    let table = only.unwrap_or(crate::names::TABLE);
    let constant: &[&str] = if only.is_some() { &HOST_SETS } else { &CONSTANT_SETS };
    for set in constant {
        // In order: a tree lists itself backwards on some kernels.
        let mut keys: Vec<Vec<u8>> = match set_elements(socket, INET, table, set) {
            Ok(elements) => elements.into_iter().map(|element| element.key_and_flags()).collect(),
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno),
        };
        keys.sort();
        for key in keys {
            rules.update(&header(key.len()));
            rules.update(&key);
        }
    }
    let skeleton = skeleton.finalize().to_hex().to_string();
    rules.update(skeleton.as_bytes());
    Ok(Some(Digest { skeleton, whole: rules.finalize().to_hex().to_string() }))
}

fn absorb(hasher: &mut blake3::Hasher, attributes: Attributes<'_>, wanted: u16) {
    let payload = attributes.find(wanted).unwrap_or(&[]);
    hasher.update(&wanted.to_le_bytes());
    hasher.update(&header(payload.len()));
    hasher.update(payload);
}
