//! Numbers of `linux/netfilter/nf_tables.h` and `nfnetlink.h` that this crate speaks.

pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(super) const NFNL_MSG_BATCH_END: u16 = 17;
pub(super) const NFNL_BATCH_GENID: u16 = 1;

pub(super) const NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
pub(super) const GETTABLE: u16 = NEWTABLE + 1;
pub(super) const DELTABLE: u16 = NEWTABLE + 2;
pub(super) const NEWCHAIN: u16 = NEWTABLE + 3;
pub(super) const GETCHAIN: u16 = NEWTABLE + 4;
pub(super) const DELCHAIN: u16 = NEWTABLE + 5;
pub(super) const NEWRULE: u16 = NEWTABLE + 6;
pub(super) const GETRULE: u16 = NEWTABLE + 7;
pub(super) const DELRULE: u16 = NEWTABLE + 8;
pub(super) const NEWSET: u16 = NEWTABLE + 9;
pub(super) const GETSET: u16 = NEWTABLE + 10;
pub(super) const NEWGEN: u16 = NEWTABLE + 15;
pub(super) const GETGEN: u16 = NEWTABLE + 16;
pub(super) const NEWOBJ: u16 = NEWTABLE + 18;
pub(super) const GETOBJ: u16 = NEWTABLE + 19;
pub(super) const NEWFLOWTABLE: u16 = NEWTABLE + 22;
pub(super) const GETFLOWTABLE: u16 = NEWTABLE + 23;

pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_BRIDGE: u8 = 7;
pub(super) const NFPROTO_IPV6: u8 = 10;

pub(super) const NFTA_GEN_ID: u16 = 1;

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USERDATA: u16 = 6;
pub(super) const NFT_TABLE_F_DORMANT: u32 = 1;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_CHAIN_USERDATA: u16 = 12;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;

// Sets, objects and flowtables agree in these two.
pub(super) const NFTA_NAMED_TABLE: u16 = 1;
pub(super) const NFTA_NAMED_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFT_SET_ANONYMOUS: u32 = 1;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_POSITION: u16 = 6;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;

pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;

pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NF_DROP: i32 = 0;
pub(super) const NF_ACCEPT: i32 = 1;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;
pub(super) const NFT_RETURN: i32 = -5;

pub(super) const REG_VERDICT: u32 = 0;
pub(super) const REG_1: u32 = 1;
pub(super) const REG_2: u32 = 2;

pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFT_CMP_EQ: u32 = 0;
pub(super) const NFT_CMP_NEQ: u32 = 1;

pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const BASE_LINK: u32 = 0;
pub(super) const BASE_NETWORK: u32 = 1;
pub(super) const BASE_TRANSPORT: u32 = 2;

pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_BITWISE_OP: u16 = 6;

pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_META_SREG: u16 = 3;
pub(super) const META_PROTOCOL: u32 = 1;
pub(super) const META_MARK: u32 = 3;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_IIFTYPE: u32 = 8;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

pub(super) const NFTA_CT_DREG: u16 = 1;
pub(super) const NFTA_CT_KEY: u16 = 2;
pub(super) const CT_STATE: u32 = 0;

pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;

pub(super) const NFTA_MASQ_FLAGS: u16 = 1;
pub(super) const NFTA_MASQ_REG_PROTO_MIN: u16 = 2;

pub(super) const NFTA_NAT_TYPE: u16 = 1;
pub(super) const NFTA_NAT_FAMILY: u16 = 2;
pub(super) const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
pub(super) const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
pub(super) const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
pub(super) const NFTA_NAT_FLAGS: u16 = 7;
pub(super) const NAT_SNAT: u32 = 0;
pub(super) const NAT_DNAT: u32 = 1;
/// The kernel sets these two itself, by which registers are given.
pub(super) const NAT_RANGE_IMPLIED: u32 = 0x3;
pub(super) const NAT_RANGE_FULLY_RANDOM: u32 = 0x10;

pub(super) const NFTA_FIB_DREG: u16 = 1;
pub(super) const NFTA_FIB_RESULT: u16 = 2;
pub(super) const NFTA_FIB_FLAGS: u16 = 3;
pub(super) const FIB_ADDRTYPE: u32 = 3;
pub(super) const FIB_DADDR: u32 = 2;
pub(super) const RTN_LOCAL: u32 = 2;

pub(super) const ARPHRD_ETHER: u16 = 1;
pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;

// `linux/netfilter/nf_tables_compat.h`; matches and targets agree.
pub(super) const NFTA_COMPAT_NAME: u16 = 1;
pub(super) const NFTA_COMPAT_REV: u16 = 2;
pub(super) const NFTA_COMPAT_INFO: u16 = 3;

/// Type of the comment among the records of user data, the same for tables, chains and rules (libnftnl).
pub(super) const UDATA_COMMENT: u8 = 0;
/// Type of [`loden_firewall::Rule::note`] among a rule's records. libnftnl numbers its own upwards from zero and its readers pass over
/// types they do not know.
pub(super) const UDATA_NOTE: u8 = 0x4c;
