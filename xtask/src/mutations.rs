//! The judge judged: known defects of route controllers, planted one by one, each of which the simulation must find.
//!
//! A simulation that passes says something only if it fails when it should. Every mutation is a few lines of `core/routes` written wrongly on
//! purpose, in a copy of the workspace; the seeded histories are then run on it and have to fail.

mod table;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

use crate::command::step;
use crate::layers;

/// Histories within which a planted defect has to be found.
const SEEDS: u64 = 1000;

/// One defect.
struct Mutation {
    name: &'static str,
    /// What a controller with it does to a cluster.
    defect: &'static str,
    edits: &'static [Edit],
}

/// One change: text that occurs once in the file, and what takes its place.
struct Edit {
    file: &'static str,
    old: &'static str,
    new: &'static str,
}

/// Plants each defect and sees it found.
///
/// # Errors
/// A mutation does not apply or does not compile any more, or was not found.
pub(crate) fn run(only: &[String]) -> Result<()> {
    let tree = copy_of_workspace()?;
    let chosen: Vec<&Mutation> = table::MUTATIONS
        .iter()
        .filter(|mutation| only.is_empty() || only.iter().any(|name| name == mutation.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = table::MUTATIONS.iter().map(|mutation| mutation.name).collect();
        bail!("there is no such mutation; there are {}", names.join(", "));
    }
    let mut survivors = Vec::new();
    for mutation in &chosen {
        let histories = try_one(&tree, mutation)?;
        match histories {
            Some(tried) => {
                println!("{:<28} found within {tried} histories: {}", mutation.name, mutation.defect)
            }
            None => survivors.push(mutation.name),
        }
    }
    if survivors.is_empty() {
        println!("{} planted defects, all found", chosen.len());
        return Ok(());
    }
    bail!("{SEEDS} histories did not find: {}", survivors.join(", "))
}

/// Plants a defect, runs the histories and takes it back. The number of histories until it was found.
fn try_one(tree: &Utf8Path, mutation: &Mutation) -> Result<Option<u64>> {
    step(&format!("planting {}", mutation.name));
    let mut originals = Vec::new();
    for edit in mutation.edits {
        let path = tree.join(edit.file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let found = text.matches(edit.old).count();
        if found != 1 {
            bail!(
                "mutation {}: its text occurs {found} times in {}, not once; adapt it",
                mutation.name,
                edit.file
            );
        }
        std::fs::write(&path, text.replace(edit.old, edit.new))
            .with_context(|| format!("cannot write {path}"))?;
        originals.push((path, text));
    }
    let outcome = histories(tree);
    for (path, text) in originals.into_iter().rev() {
        std::fs::write(&path, text).with_context(|| format!("cannot write {path}"))?;
    }
    outcome.with_context(|| format!("mutation {}", mutation.name))
}

fn histories(tree: &Utf8Path) -> Result<Option<u64>> {
    let cargo = |arguments: &[&str]| {
        Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
            .args(["test", "--quiet", "--locked", "--package", "loden-routes", "--lib"])
            // A planted defect shows within a hundred histories: to compile them well takes longer than to run them badly.
            .args(["--config", "profile.dev.package.loden-routes.opt-level=0"])
            .args(arguments)
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", layers::target_directory()?.as_std_path())
            .env("LODEN_SEEDS", SEEDS.to_string())
            .output()
            .context("cannot start cargo")
    };
    let built = cargo(&["--no-run"])?;
    if !built.status.success() {
        bail!("it does not compile any more:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    let output = cargo(&["histories_end_well"])?;
    let told = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(None);
    }
    let line = told.lines().find(|line| line.contains("histories went wrong"));
    let tried = line.and_then(|line| line.split(' ').nth(2)).and_then(|word| word.parse().ok());
    tried.map(Some).with_context(|| format!("the run ended in another way than by a found defect:\n{told}"))
}

/// The workspace's sources, copied beside the build.
fn copy_of_workspace() -> Result<Utf8PathBuf> {
    let root = layers::workspace_root()?;
    let tree = layers::target_directory()?.join("mutations");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {tree}"))?;
    }
    copy(root.as_std_path(), tree.as_std_path())?;
    Ok(tree)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let entries = std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let skipped = name == ".git" || path.join("CACHEDIR.TAG").exists();
        let target = to.join(&name);
        if skipped {
            continue;
        }
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            copy(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
