//! Work that is mostly the kernel's: 5,000 VXLAN peers, and one nf_tables transaction. Loden's crates and the floor, in turns.

use super::Programs;
use super::report::{Row, Who};
use super::stage::{Namespace, program, timed};
use anyhow::Result;
use cargo_metadata::camino::Utf8Path;

/// The cluster size that a node must cope with.
const PEERS: &str = "5000";

fn both(programs: &Programs, floor_only: bool) -> Vec<(Who, &Utf8Path)> {
    let mut both = vec![(Who::Ours, programs.measured.as_path()), (Who::Floor, programs.floor.as_path())];
    if floor_only {
        both.remove(0);
    }
    both
}

/// Every peer is a route, a neighbour and an FDB entry; the daemon's own way looks before and after. The second row is the daemon's
/// look when all is right already, which is what it does after every change.
pub(crate) fn measure_peers(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let subjects = both(programs, floor_only);
    let mut first = vec![Vec::new(); subjects.len()];
    let mut again = Vec::new();
    for _ in 0..runs {
        for ((who, path), samples) in subjects.iter().zip(&mut first) {
            let node = Namespace::new("peers")?;
            node.run(|| {
                samples.push(timed(program(path).args(["peers", PEERS]), None)?.0);
                if *who == Who::Ours {
                    again.push(timed(program(path).args(["peers", PEERS, "again"]), None)?.0);
                }
                Ok(())
            })?;
            // Before the namespace: its own clean-up would run beside the next measurement.
            node.ip("link delete flannel.1")?;
        }
    }
    let mut row = Row::new("5,000 vxlan peers (15,000 objects)".to_owned());
    for ((who, _), samples) in subjects.iter().zip(&first) {
        row.add(*who, samples);
    }
    let mut rows = vec![row];
    if !floor_only {
        let mut row = Row::new("5,000 vxlan peers, nothing to do".to_owned());
        row.add(Who::Ours, &again);
        rows.push(row);
    }
    Ok(rows)
}

/// A table with a base chain and a masquerade rule, written in one transaction, and deleted in one.
pub(crate) fn measure_table(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let subjects = both(programs, floor_only);
    let node = Namespace::new("nft")?;
    let mut rows = vec![
        Row::new("nf_tables: write a table".to_owned()),
        Row::new("nf_tables: delete a table".to_owned()),
    ];
    let mut samples = vec![(Vec::new(), Vec::new()); subjects.len()];
    for _ in 0..runs {
        for ((_, path), (add, delete)) in subjects.iter().zip(&mut samples) {
            node.run(|| {
                add.push(timed(program(path).arg("nft-add"), None)?.0);
                delete.push(timed(program(path).arg("nft-delete"), None)?.0);
                Ok(())
            })?;
        }
    }
    for ((who, _), (add, delete)) in subjects.iter().zip(&samples) {
        for (row, samples) in rows.iter_mut().zip([add, delete]) {
            row.add(*who, samples);
        }
    }
    Ok(rows)
}
