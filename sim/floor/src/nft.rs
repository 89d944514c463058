//! One nf_tables transaction with nothing around it: a table with a base chain and a masquerade rule, and its removal; rules appended
//! to that chain, and their removal.
//!
//! Formats: `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`.

use crate::Error;
use crate::netlink::{Batch, Socket, flags};

/// The table's name; its family is `ip`.
pub const TABLE: &str = "loden-floor";
/// The chain's name.
pub const CHAIN: &str = "postrouting";

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = NEWTABLE + 2;
const NEWCHAIN: u16 = NEWTABLE + 3;
const NEWRULE: u16 = NEWTABLE + 6;
const DELRULE: u16 = NEWTABLE + 8;
const IPV4: [u8; 4] = [2, 0, 0, 0];
const POSTROUTING: u32 = 4;
const SRCNAT: u32 = 100;
const REG_1: u32 = 1;
const BASE_NETWORK: u32 = 1;
/// Where an IPv4 header has its source address, and one octet of it: the rule is about 10.0.0.0/8.
const SOURCE: u32 = 12;

/// Writes the table.
///
/// # Errors
/// When the kernel refuses it; nothing has changed then.
pub fn add() -> Result<usize, Error> {
    let be = |value: u32| value.to_be_bytes();
    let mut batch = begin();
    batch.message(NEWTABLE, flags::CREATE, &IPV4).text(1, TABLE).attr(2, &be(0));
    batch.message(NEWCHAIN, flags::CREATE, &IPV4).text(1, TABLE).text(3, CHAIN);
    batch.nest(4, |b| {
        b.attr(1, &be(POSTROUTING)).attr(2, &be(SRCNAT));
    });
    batch.attr(5, &be(1)).text(7, "nat");
    rule(&mut batch);
    finish("write the table", batch)?;
    Ok(3)
}

/// How many rules [`add_rules`] appends: about what one mapped port takes.
pub const RULES: usize = 3;

/// Appends rules to the chain of a table that [`add`] has written.
///
/// # Errors
/// When there is no such table; nothing has changed then.
pub fn add_rules() -> Result<usize, Error> {
    let mut batch = begin();
    for _ in 0..RULES {
        rule(&mut batch);
    }
    finish("append rules", batch)?;
    Ok(RULES)
}

/// Deletes all rules of the chain.
///
/// # Errors
/// When there is no such table.
pub fn delete_rules() -> Result<usize, Error> {
    let mut batch = begin();
    batch.message(DELRULE, 0, &IPV4).text(1, TABLE).text(2, CHAIN);
    finish("delete rules", batch)?;
    Ok(RULES)
}

/// A rule at the end of the chain.
fn rule(batch: &mut Batch) {
    let be = |value: u32| value.to_be_bytes();
    batch.message(NEWRULE, flags::CREATE | flags::APPEND, &IPV4).text(1, TABLE).text(2, CHAIN);
    batch.nest(4, |b| {
        expression(b, "payload", |b| {
            b.attr(1, &be(REG_1)).attr(2, &be(BASE_NETWORK)).attr(3, &be(SOURCE)).attr(4, &be(1));
        });
        expression(b, "cmp", |b| {
            b.attr(1, &be(REG_1)).attr(2, &be(0)).nest(3, |b| {
                b.attr(1, &[10]);
            });
        });
        expression(b, "masq", |_| {});
    });
}

/// Removes the table.
///
/// # Errors
/// When there is none.
pub fn delete() -> Result<usize, Error> {
    let mut batch = begin();
    batch.message(DELTABLE, 0, &IPV4).text(1, TABLE);
    finish("delete the table", batch)?;
    Ok(3)
}

fn begin() -> Batch {
    let mut batch = Batch::new();
    batch.message(BATCH_BEGIN, 0, &framing());
    batch
}

fn finish(operation: &str, mut batch: Batch) -> Result<(), Error> {
    batch.acknowledged();
    batch.message(BATCH_END, 0, &framing());
    Socket::netfilter()?.run(operation, batch)
}

/// `struct nfgenmsg` of the messages around a transaction.
fn framing() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

fn expression(batch: &mut Batch, name: &str, fill: impl FnOnce(&mut Batch)) {
    batch.nest(1, |b| {
        b.text(1, name).nest(2, fill);
    });
}
