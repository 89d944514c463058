//! From a change to its message: the expressions are those nft itself writes, so that its listing reads the same.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::{Action, Base, ChainKind, Change, Family, Hook, L4, Match, Policy, Rule, TableName};

use super::uapi::*;
use crate::wire::{F_APPEND, F_CREATE, F_EXCL, Message};

/// A message, and where in it each expression starts: the kernel points there when it does not know one.
pub(super) struct Encoded {
    pub(super) message: Message,
    pub(super) expressions: Vec<(usize, &'static str)>,
}

pub(super) fn family(family: Family) -> u8 {
    match family {
        Family::Ip => NFPROTO_IPV4,
        Family::Ip6 => NFPROTO_IPV6,
        Family::Inet => NFPROTO_INET,
        Family::Bridge => NFPROTO_BRIDGE,
    }
}

/// `struct nfgenmsg`.
pub(super) fn header(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

fn message(kind: u16, flags: u16, table: &TableName) -> Message {
    Message::new(kind, flags, &header(family(table.family), 0))
}

pub(super) fn change(change: &Change) -> Encoded {
    let mut expressions = Vec::new();
    let message = match change {
        Change::AddTable { table, comment } => {
            let mut m = message(NEWTABLE, F_CREATE, table);
            m.text(NFTA_TABLE_NAME, &table.name);
            m.be32(NFTA_TABLE_FLAGS, 0);
            add_comment(&mut m, NFTA_TABLE_USERDATA, comment.as_deref());
            m
        }
        Change::DeleteTable(table) => {
            let mut m = message(DELTABLE, 0, table);
            m.text(NFTA_TABLE_NAME, &table.name);
            m
        }
        Change::AddChain { table, chain, base, comment } => {
            let mut m = message(NEWCHAIN, F_CREATE, table);
            m.text(NFTA_CHAIN_TABLE, &table.name);
            m.text(NFTA_CHAIN_NAME, chain);
            if let Some(base) = base {
                add_base(&mut m, base);
            }
            add_comment(&mut m, NFTA_CHAIN_USERDATA, comment.as_deref());
            m
        }
        Change::FlushChain { table, chain } => {
            let mut m = message(DELRULE, 0, table);
            m.text(NFTA_RULE_TABLE, &table.name);
            m.text(NFTA_RULE_CHAIN, chain);
            m
        }
        Change::DeleteChain { table, chain } => {
            let mut m = message(DELCHAIN, 0, table);
            m.text(NFTA_CHAIN_TABLE, &table.name);
            m.text(NFTA_CHAIN_NAME, chain);
            m
        }
        Change::AddRule { table, chain, before, rule } => {
            let place = if before.is_some() { 0 } else { F_APPEND };
            let mut m = message(NEWRULE, F_CREATE | place, table);
            m.text(NFTA_RULE_TABLE, &table.name);
            m.text(NFTA_RULE_CHAIN, chain);
            if let Some(handle) = before {
                m.be64(NFTA_RULE_POSITION, *handle);
            }
            m.nest(NFTA_RULE_EXPRESSIONS, |m| {
                expressions = Expressions::of(m, table.family).rule(rule);
            });
            add_records(
                &mut m,
                NFTA_RULE_USERDATA,
                &[(UDATA_COMMENT, rule.comment.as_deref()), (UDATA_NOTE, rule.note.as_deref())],
            );
            m
        }
        Change::DeleteRule { table, chain, handle } => {
            let mut m = message(DELRULE, 0, table);
            m.text(NFTA_RULE_TABLE, &table.name);
            m.text(NFTA_RULE_CHAIN, chain);
            m.be64(NFTA_RULE_HANDLE, *handle);
            m
        }
    };
    // Only creation of a rule knows an EXCL flag, and none of these wants it.
    debug_assert_eq!(message.flags & F_EXCL, 0);
    Encoded { message, expressions }
}

fn add_base(m: &mut Message, base: &Base) {
    let hook = match base.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    m.nest(NFTA_CHAIN_HOOK, |m| {
        m.be32(NFTA_HOOK_HOOKNUM, hook);
        m.bytes(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
    });
    let policy = match base.policy {
        Policy::Accept => NF_ACCEPT,
        Policy::Drop => NF_DROP,
    };
    m.bytes(NFTA_CHAIN_POLICY, &policy.to_be_bytes());
    m.text(
        NFTA_CHAIN_TYPE,
        match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        },
    );
}

fn add_comment(m: &mut Message, attr: u16, comment: Option<&str>) {
    add_records(m, attr, &[(UDATA_COMMENT, comment)]);
}

/// User data is a row of records: type, length, value. The value of a text ends with a NUL.
fn add_records(m: &mut Message, attr: u16, records: &[(u8, Option<&str>)]) {
    let mut data = Vec::new();
    for (kind, text) in records {
        let Some(text) = text else { continue };
        let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
        data.extend([*kind, len]);
        data.extend(text.bytes().take(usize::from(len) - 1));
        data.push(0);
    }
    if !data.is_empty() {
        m.bytes(attr, &data);
    }
}

/// Writes a rule's expressions. What a match needs to know first (which network or transport protocol the packet is)
/// is tested once per rule, where nft would test it, and never printed.
struct Expressions<'a> {
    m: &'a mut Message,
    family: Family,
    network: Option<u16>,
    transport: Option<u8>,
    ether: bool,
    starts: Vec<(usize, &'static str)>,
}

impl<'a> Expressions<'a> {
    fn of(m: &'a mut Message, family: Family) -> Self {
        Self { m, family, network: None, transport: None, ether: false, starts: Vec::new() }
    }

    fn rule(mut self, rule: &Rule) -> Vec<(usize, &'static str)> {
        for m in &rule.matches {
            self.matching(m);
        }
        self.action(&rule.action);
        self.starts
    }

    fn expression(&mut self, name: &'static str, fill: impl FnOnce(&mut Message)) {
        self.starts.push((self.m.len(), name));
        self.m.nest(NFTA_LIST_ELEM, |m| {
            m.text(NFTA_EXPR_NAME, name);
            m.nest(NFTA_EXPR_DATA, fill);
        });
    }

    fn matching(&mut self, m: &Match) {
        match m {
            Match::Source { net, negated } => self.address(net, false, *negated),
            Match::Destination { net, negated } => self.address(net, true, *negated),
            Match::Mark { value, mask } => {
                self.meta(META_MARK);
                if *mask != u32::MAX {
                    self.bitwise(&mask.to_ne_bytes(), &[0; 4]);
                }
                self.compare(&value.to_ne_bytes(), false);
            }
            Match::InputLink(name) => self.link(META_IIFNAME, name, false),
            Match::NotInputLink(name) => self.link(META_IIFNAME, name, true),
            Match::OutputLink(name) => self.link(META_OIFNAME, name, false),
            Match::NotOutputLink(name) => self.link(META_OIFNAME, name, true),
            Match::L4 { proto } => {
                self.meta(META_L4PROTO);
                self.compare(&[proto.number()], false);
                self.transport = Some(proto.number());
            }
            Match::SourcePort { proto, port } => self.port(*proto, 0, *port),
            Match::DestinationPort { proto, port } => self.port(*proto, 2, *port),
            Match::DestinationLocal => {
                self.expression("fib", |m| {
                    m.be32(NFTA_FIB_DREG, REG_1);
                    m.be32(NFTA_FIB_RESULT, FIB_ADDRTYPE);
                    m.be32(NFTA_FIB_FLAGS, FIB_DADDR);
                });
                self.compare(&RTN_LOCAL.to_ne_bytes(), false);
            }
            Match::EtherSource(mac) => {
                if self.family != Family::Bridge && !self.ether {
                    self.meta(META_IIFTYPE);
                    self.compare(&ARPHRD_ETHER.to_ne_bytes(), false);
                    self.ether = true;
                }
                self.payload(BASE_LINK, 6, 6);
                self.compare(mac, false);
            }
            Match::CtState(bits) => {
                self.expression("ct", |m| {
                    m.be32(NFTA_CT_DREG, REG_1);
                    m.be32(NFTA_CT_KEY, CT_STATE);
                });
                self.bitwise(&bits.to_ne_bytes(), &[0; 4]);
                self.compare(&[0; 4], true);
            }
            Match::Counter => self.expression("counter", |m| {
                m.be64(NFTA_COUNTER_BYTES, 0);
                m.be64(NFTA_COUNTER_PACKETS, 0);
            }),
            // Refused by the check before anything is encoded; nothing could be written for it.
            _ => {}
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Accept => self.verdict(NF_ACCEPT, None),
            Action::Drop => self.verdict(NF_DROP, None),
            Action::Return => self.verdict(NFT_RETURN, None),
            Action::Jump(chain) => self.verdict(NFT_JUMP, Some(chain)),
            Action::Goto(chain) => self.verdict(NFT_GOTO, Some(chain)),
            Action::Masquerade { fully_random } => self.expression("masq", |m| {
                if *fully_random {
                    m.be32(NFTA_MASQ_FLAGS, NAT_RANGE_FULLY_RANDOM);
                }
            }),
            Action::DestinationNat { addr, port } => self.nat(NAT_DNAT, *addr, *port),
            Action::SourceNat { addr, port } => self.nat(NAT_SNAT, *addr, *port),
            Action::SetMark { value, mask } => {
                if *mask == u32::MAX {
                    self.load(REG_1, &value.to_ne_bytes());
                } else {
                    self.meta(META_MARK);
                    self.bitwise(&(!mask).to_ne_bytes(), &value.to_ne_bytes());
                }
                self.expression("meta", |m| {
                    m.be32(NFTA_META_KEY, META_MARK);
                    m.be32(NFTA_META_SREG, REG_1);
                });
            }
            _ => {}
        }
    }

    /// nft loads whole bytes only, as many as the prefix fills, and masks when it ends inside a byte.
    fn address(&mut self, net: &IpNet, destination: bool, negated: bool) {
        let (v4, octets) = match net.network() {
            IpAddr::V4(addr) => (true, addr.octets().to_vec()),
            IpAddr::V6(addr) => (false, addr.octets().to_vec()),
        };
        self.needs_network(v4);
        let offset = match (v4, destination) {
            (true, false) => 12,
            (true, true) => 16,
            (false, false) => 8,
            (false, true) => 24,
        };
        let bits = usize::from(net.prefix_len());
        let whole = bits / 8;
        if bits.is_multiple_of(8) && bits > 0 {
            self.payload(BASE_NETWORK, offset, whole);
            self.compare(octets.get(..whole).unwrap_or(&octets), negated);
        } else {
            let mask: Vec<u8> = match net.netmask() {
                IpAddr::V4(mask) => mask.octets().to_vec(),
                IpAddr::V6(mask) => mask.octets().to_vec(),
            };
            self.payload(BASE_NETWORK, offset, octets.len());
            self.bitwise(&mask, &vec![0; mask.len()]);
            self.compare(&octets, negated);
        }
    }

    fn needs_network(&mut self, v4: bool) {
        let protocol = if v4 { ETH_P_IP } else { ETH_P_IPV6 };
        if self.network == Some(protocol) {
            return;
        }
        match self.family {
            Family::Ip | Family::Ip6 => return,
            Family::Inet => {
                self.meta(META_NFPROTO);
                self.compare(&[if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }], false);
            }
            Family::Bridge => {
                self.meta(META_PROTOCOL);
                self.compare(&protocol.to_be_bytes(), false);
            }
        }
        self.network = Some(protocol);
    }

    fn port(&mut self, proto: L4, offset: u32, port: u16) {
        if self.transport != Some(proto.number()) {
            self.matching(&Match::L4 { proto });
        }
        self.payload(BASE_TRANSPORT, offset, 2);
        self.compare(&port.to_be_bytes(), false);
    }

    /// A whole name compares all 16 bytes, a prefix only its own.
    fn link(&mut self, key: u32, name: &str, negated: bool) {
        self.meta(key);
        match name.strip_suffix('*') {
            Some(prefix) => self.compare(prefix.as_bytes(), negated),
            None => {
                let mut value = name.as_bytes().to_vec();
                value.resize(16, 0);
                self.compare(&value, negated);
            }
        }
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.be32(NFTA_META_KEY, key);
            m.be32(NFTA_META_DREG, REG_1);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: usize) {
        self.expression("payload", |m| {
            m.be32(NFTA_PAYLOAD_DREG, REG_1);
            m.be32(NFTA_PAYLOAD_BASE, base);
            m.be32(NFTA_PAYLOAD_OFFSET, offset);
            m.be32(NFTA_PAYLOAD_LEN, u32::try_from(len).unwrap_or(0));
        });
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |m| {
            m.be32(NFTA_BITWISE_SREG, REG_1);
            m.be32(NFTA_BITWISE_DREG, REG_1);
            m.be32(NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(0));
            m.nest(NFTA_BITWISE_MASK, |m| m.bytes(NFTA_DATA_VALUE, mask));
            m.nest(NFTA_BITWISE_XOR, |m| m.bytes(NFTA_DATA_VALUE, xor));
        });
    }

    fn compare(&mut self, value: &[u8], negated: bool) {
        self.expression("cmp", |m| {
            m.be32(NFTA_CMP_SREG, REG_1);
            m.be32(NFTA_CMP_OP, if negated { NFT_CMP_NEQ } else { NFT_CMP_EQ });
            m.nest(NFTA_CMP_DATA, |m| m.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn load(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |m| {
            m.be32(NFTA_IMMEDIATE_DREG, register);
            m.nest(NFTA_IMMEDIATE_DATA, |m| m.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |m| {
            m.be32(NFTA_IMMEDIATE_DREG, REG_VERDICT);
            m.nest(NFTA_IMMEDIATE_DATA, |m| {
                m.nest(NFTA_DATA_VERDICT, |m| {
                    m.bytes(NFTA_VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        m.text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    fn nat(&mut self, kind: u32, addr: IpAddr, port: Option<u16>) {
        match addr {
            IpAddr::V4(addr) => self.load(REG_1, &addr.octets()),
            IpAddr::V6(addr) => self.load(REG_1, &addr.octets()),
        }
        if let Some(port) = port {
            self.load(REG_2, &port.to_be_bytes());
        }
        self.expression("nat", |m| {
            m.be32(NFTA_NAT_TYPE, kind);
            m.be32(NFTA_NAT_FAMILY, u32::from(if addr.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }));
            m.be32(NFTA_NAT_REG_ADDR_MIN, REG_1);
            m.be32(NFTA_NAT_REG_ADDR_MAX, REG_1);
            if port.is_some() {
                m.be32(NFTA_NAT_REG_PROTO_MIN, REG_2);
                m.be32(NFTA_NAT_REG_PROTO_MAX, REG_2);
            }
        });
    }
}
