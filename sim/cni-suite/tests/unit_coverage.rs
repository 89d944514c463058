//! The written table is that of the cases, and no cell of it is empty.

use loden_cni_suite::{case, cases, coverage};

const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cni-coverage.md");

#[test]
fn the_written_table_is_that_of_the_cases() {
    let table = coverage::table(&case::read_all(cases()).unwrap()).unwrap();
    let written = std::fs::read_to_string(WRITTEN).unwrap();
    assert!(written == table.text, "docs/cni-coverage.md is not up to date: run `cargo xtask cni-coverage`");
}

#[test]
fn no_cell_is_empty() {
    let table = coverage::table(&case::read_all(cases()).unwrap()).unwrap();
    assert_eq!(table.empty, Vec::<String>::new());
}

#[test]
fn no_two_cases_have_one_title() {
    let mut titles: Vec<String> = case::read_all(cases()).unwrap().iter().map(case::Case::title).collect();
    titles.sort();
    let twice: Vec<_> =
        titles.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).collect();
    assert_eq!(twice, Vec::<String>::new());
}
