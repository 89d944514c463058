//! Rules in the tables of the host's `iptables`.
//!
//! Owns the two ways to these tables. What is there is read over netlink where iptables keeps its rules in nf_tables, chain by chain and
//! without a process, and otherwise from one `iptables-save`. What is added goes through one `iptables-restore --noflush`, so that the
//! host's own program decides how a rule is written; what is taken away from nf_tables goes by handle, without a process.
//!
//! Invariants: only chains of ours are emptied or deleted, everything else is edited rule by rule. A chain is made only after it was
//! seen missing, and never declared: the declaration would empty it. Nothing passes through a shell. If another writer comes between
//! reading and writing, both happen again.

mod error;
mod programs;

use std::ffi::OsStr;
use std::fs;

use loden_firewall::iptables::{Change, Observed, Table, parse_save, restore_input};
use loden_firewall::{Family as NftFamily, TableName};
use loden_netlink::nft::{self, NftSocket};

pub use error::{Error, Result};
use programs::Programs;

/// How often an edit is begun again because somebody else's came between.
const ATTEMPTS: u32 = 12;

/// Which packets: iptables has a set of tables and programs for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address or network.
    pub fn of(is_ipv4: bool) -> Self {
        if is_ipv4 { Self::V4 } else { Self::V6 }
    }

    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The tables that were touched in this namespace by the older iptables; absent when the kernel has not loaded it.
    fn legacy_names(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    fn nft(self) -> NftFamily {
        match self {
            Self::V4 => NftFamily::Ip,
            Self::V6 => NftFamily::Ip6,
        }
    }
}

/// Where iptables keeps its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// In nf_tables (`iptables-nft`).
    Nft,
    /// In the kernel's older tables (`iptables-legacy`).
    Legacy,
}

/// The tables of one family in the calling thread's network namespace.
#[derive(Debug)]
pub struct Iptables {
    family: Family,
    variant: Variant,
    /// `None` where rules are only taken away, natively.
    programs: Option<Programs>,
    /// Opened when first needed.
    socket: Option<NftSocket>,
}

impl Iptables {
    /// The tables that the host's program writes. `None` when `PATH` has no such program, or one that the kernel lacks the means for.
    /// Runs nothing, unless a wrapper hides which variant the program is.
    ///
    /// # Errors
    /// The program or the kernel cannot be asked.
    pub fn find(family: Family) -> Result<Option<Self>> {
        Self::find_in(family, &programs::search_path())
    }

    /// As [`Iptables::find`], in other directories than those of `PATH`.
    ///
    /// # Errors
    /// As [`Iptables::find`].
    pub fn find_in(family: Family, path: &OsStr) -> Result<Option<Self>> {
        let Some((programs, variant)) = Programs::find_in(family, path)? else { return Ok(None) };
        let mut found = Self { family, variant, programs: Some(programs), socket: None };
        Ok(found.is_usable()?.then_some(found))
    }

    /// Every place where rules of this family may be found in order to take them away: nf_tables where the kernel has it, with or without
    /// a program, and the older tables where they are in use and the host's program is the one that speaks of them.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn for_removal(family: Family) -> Result<Vec<Self>> {
        Self::for_removal_in(family, &programs::search_path())
    }

    /// As [`Iptables::for_removal`], with programs from other directories than those of `PATH`.
    ///
    /// # Errors
    /// As [`Iptables::for_removal`].
    pub fn for_removal_in(family: Family, path: &OsStr) -> Result<Vec<Self>> {
        let mut places = Vec::new();
        if let Some(socket) = NftSocket::open_if_supported()? {
            places.push(Self { family, variant: Variant::Nft, programs: None, socket: Some(socket) });
        }
        if !legacy_tables(family).is_empty()
            && let Some((programs, Variant::Legacy)) = Programs::find_in(family, path)?
        {
            places.push(Self { family, variant: Variant::Legacy, programs: Some(programs), socket: None });
        }
        Ok(places)
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Where the rules are kept.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Changes a table: reads `chains`, asks `plan` what has to change in them, and does that. When it cannot be done because somebody
    /// else changed the same meanwhile, all of this happens again, so `plan` must be the same for the same chains. Says what was changed.
    ///
    /// # Errors
    /// The chains cannot be read, or iptables or the kernel refuse the changes; the program's own words are part of the error.
    pub fn edit(
        &mut self,
        table: Table,
        chains: &[&str],
        mut plan: impl FnMut(&Observed) -> Vec<Change>,
    ) -> Result<Vec<Change>> {
        self.edit_where(table, |name| chains.contains(&name), Some(chains), &mut plan)
    }

    /// As [`Iptables::edit`], for the chains whose names `is_wanted` picks from all there are.
    ///
    /// # Errors
    /// As [`Iptables::edit`].
    pub fn edit_matching(
        &mut self,
        table: Table,
        is_wanted: impl Fn(&str) -> bool,
        mut plan: impl FnMut(&Observed) -> Vec<Change>,
    ) -> Result<Vec<Change>> {
        self.edit_where(table, is_wanted, None, &mut plan)
    }

    fn edit_where(
        &mut self,
        table: Table,
        is_wanted: impl Fn(&str) -> bool,
        names: Option<&[&str]>,
        plan: &mut dyn FnMut(&Observed) -> Vec<Change>,
    ) -> Result<Vec<Change>> {
        let mut refused: Option<(Vec<Change>, Error)> = None;
        for _ in 0..ATTEMPTS {
            let observed = match names {
                Some(names) => self.observe(table, names)?,
                None => self.observe_matching(table, &is_wanted)?,
            };
            let changes = plan(&observed);
            if changes.is_empty() {
                return Ok(changes);
            }
            // Nothing else has changed these chains, so the refusal is meant.
            if let Some((before, error)) = refused.take()
                && before == changes
            {
                return Err(error);
            }
            match self.apply(table, &changes) {
                Ok(()) => return Ok(changes),
                Err(error) if error.is_refusal() => refused = Some((changes, error)),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Busy { program: self.family.program(), table, attempts: ATTEMPTS })
    }

    /// Reads some chains of a table.
    ///
    /// # Errors
    /// They cannot be read whole.
    pub fn observe(&mut self, table: Table, chains: &[&str]) -> Result<Observed> {
        match self.variant {
            Variant::Legacy => self.saved(table),
            Variant::Nft => {
                let name = self.table_name(table);
                let socket = self.socket()?;
                let read = chains
                    .iter()
                    .map(|chain| Ok(((*chain).to_owned(), socket.iptables_chain(&name, chain)?)))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Observed::of(table, read))
            }
        }
    }

    fn observe_matching(&mut self, table: Table, is_wanted: &impl Fn(&str) -> bool) -> Result<Observed> {
        if self.variant == Variant::Legacy {
            return self.saved(table);
        }
        let name = self.table_name(table);
        let mut names = self.socket()?.chain_names(&name)?;
        names.retain(|name| is_wanted(name));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.observe(table, &names)
    }

    fn saved(&self, table: Table) -> Result<Observed> {
        // Asking for a table would make it, with its hooks in every packet's way.
        if !legacy_tables(self.family).iter().any(|name| name == table.name()) {
            return Ok(Observed::untouched(table));
        }
        let programs = self.programs()?;
        let text = programs.save(table)?;
        parse_save(table, &text)
            .map_err(|source| Error::Listing { program: format!("{}-save", self.family.program()), source })
    }

    fn apply(&mut self, table: Table, changes: &[Change]) -> Result<()> {
        if self.variant == Variant::Legacy {
            return self.restore(table, changes);
        }
        let name = self.table_name(table);
        if changes.iter().all(Change::is_removal) {
            let changes: Vec<_> = changes.iter().filter_map(|change| natively(&name, change)).collect();
            return Ok(self.socket()?.apply(&changes)?);
        }
        // Rules have no other safe name than their handle, and iptables-restore does not know handles.
        let (rules, rest): (Vec<Change>, Vec<Change>) =
            changes.iter().cloned().partition(|change| matches!(change, Change::Delete { .. }));
        if !rules.is_empty() {
            let rules: Vec<_> = rules.iter().filter_map(|change| natively(&name, change)).collect();
            self.socket()?.apply(&rules)?;
        }
        self.restore(table, &rest)
    }

    fn restore(&self, table: Table, changes: &[Change]) -> Result<()> {
        self.programs()?.restore(table, &restore_input(table, changes)?)
    }

    fn programs(&self) -> Result<&Programs> {
        self.programs.as_ref().ok_or(Error::NoProgram { program: self.family.program() })
    }

    fn table_name(&self, table: Table) -> TableName {
        TableName { family: self.family.nft(), name: table.name().to_owned() }
    }

    fn socket(&mut self) -> Result<&mut NftSocket> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            empty => Ok(empty.insert(NftSocket::open()?)),
        }
    }

    fn is_usable(&mut self) -> Result<bool> {
        match self.variant {
            Variant::Nft => {
                self.socket = NftSocket::open_if_supported()?;
                Ok(self.socket.is_some())
            }
            Variant::Legacy => Ok(fs::exists(self.family.legacy_names()).unwrap_or(false)
                || programs::has_module(if self.family == Family::V4 { "ip_tables" } else { "ip6_tables" })),
        }
    }
}

fn natively(table: &TableName, change: &Change) -> Option<nft::Change> {
    let (table, chain) = (table.clone(), change.chain().to_owned());
    match change {
        Change::Delete { found, .. } => {
            found.handle.map(|handle| nft::Change::DeleteRule { table, chain, handle })
        }
        Change::Flush(_) => Some(nft::Change::FlushChain { table, chain }),
        Change::DeleteChain(_) => Some(nft::Change::DeleteChain { table, chain }),
        Change::NewChain(_) | Change::Insert { .. } | Change::Append { .. } => None,
    }
}

/// The older tables that exist in the calling thread's namespace. None when the kernel has not loaded the older iptables.
fn legacy_tables(family: Family) -> Vec<String> {
    let text = fs::read_to_string(family.legacy_names()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
