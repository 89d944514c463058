//! `host-local` by itself, among few and among thousands of reservations; and `ptp` with both families.

use super::Programs;
use super::contest::{Contender, Verb, contest};
use super::plugins::{self, DEBIAN, LINK};
use super::report::{Reference, Row, Who};
use super::stage::{Directory, Namespace, program};
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

/// Reservations that are there already, and what the reference plugin took to add one.
const CROWDS: [(u16, Reference); 2] = [
    (10, Reference { min: 2.6, cpu: Some(2.8), processes: Some(1) }),
    (4000, Reference { min: 69.0, cpu: Some(55.0), processes: Some(1) }),
];

/// Each program has a directory of its own with as many reservations, made before.
pub(crate) fn measure_reservations(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let (node, pod) = (Namespace::new("addresses")?, Namespace::new("pod")?);
    for (present, reference) in CROWDS {
        let directory = Directory::new()?;
        let folder = plugins::install(programs, &directory)?;
        let mut contenders = Vec::new();
        if !floor_only {
            contenders.push(host_local(Who::Ours, &directory, &folder, &pod, present)?);
            contenders.push(host_local(Who::Debian, &directory, Utf8Path::new(DEBIAN), &pod, present)?);
        }
        let state = reserved(&directory, "floor", present)?;
        let make = move |verb: Verb, _| {
            let mut command = program(&programs.floor);
            let word = if verb == Verb::Add { "reserve" } else { "release" };
            command.args([word, state.as_str(), "10.96.200.1"]);
            command
        };
        contenders.push(Contender::new(Who::Floor, make, None, |_, _| Ok(())));
        let what = format!("host-local beside {present} reservations");
        let [add, delete] = contest(&what, &node, contenders, runs)?;
        rows.extend([if floor_only { add } else { add.beside(reference) }, delete]);
    }
    Ok(rows)
}

/// A network's directory with `present` addresses reserved, as every plugin writes them.
fn reserved(directory: &Directory, who: &str, present: u16) -> Result<Utf8PathBuf> {
    let state = directory.path.join(format!("reserved-{who}/net"));
    std::fs::create_dir_all(&state).with_context(|| format!("cannot make {state}"))?;
    let mut last = String::new();
    for n in 0..present {
        last = format!("10.96.{}.{}", n / 200, 2 + n % 200);
        std::fs::write(state.join(&last), format!("other-{n}\r\neth0"))?;
    }
    std::fs::write(state.join("last_reserved_ip.0"), last)?;
    Ok(state)
}

fn host_local<'a>(
    who: Who,
    directory: &Directory,
    folder: &Utf8Path,
    pod: &Namespace,
    present: u16,
) -> Result<Contender<'a>> {
    let state = reserved(directory, &who.to_string().replace(' ', "-"), present)?;
    let data = state.parent().context("the network's directory lies in one")?;
    let config = directory.write(
        &format!("host-local-{}.json", who.to_string().replace(' ', "-")),
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"net","ipam":{{"type":"host-local","dataDir":"{data}","ranges":[[{{"subnet":"10.96.0.0/16"}}]]}}}}"#
        ),
    )?;
    let (folder, netns) = (folder.to_owned(), pod.path());
    let make = move |verb: Verb, number| {
        plugins::call(&folder, "host-local", verb.as_str(), &format!("pod-{number}"), &netns)
    };
    let verify = move |verb: Verb, number| {
        // By the content: which address it is, is the plugin's business.
        let mut found = false;
        for entry in std::fs::read_dir(&state)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("10.") {
                found |= std::fs::read(&path)?.starts_with(format!("pod-{number}\r\n").as_bytes());
            }
        }
        ensure!(found == (verb == Verb::Add), "the reservation is there: {found}");
        Ok(())
    };
    Ok(Contender::new(who, make, Some(config.as_path()), verify))
}

/// Routed pods with an address of each family.
pub(crate) fn measure_ptp(programs: &Programs, runs: usize) -> Result<Vec<Row>> {
    let node = Namespace::new("ptp")?;
    let pods = [Namespace::new("pod0")?, Namespace::new("pod1")?];
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let mut contenders = Vec::new();
    for ((who, folder), pod) in
        [(Who::Ours, folder.as_path()), (Who::Debian, Utf8Path::new(DEBIAN))].into_iter().zip(&pods)
    {
        let (name, subnet) = if who == Who::Ours { ("ours", 1) } else { ("peer", 2) };
        let config = directory.write(
            &format!("ptp-{name}.json"),
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"{name}","type":"ptp","ipam":{{"type":"host-local","dataDir":"{}/state-ptp",
                "ranges":[[{{"subnet":"10.95.{subnet}.0/24"}}],[{{"subnet":"fd00:95:{subnet}::/64"}}]],
                "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]}}}}"#,
                directory.path
            ),
        )?;
        let folder = folder.to_owned();
        let make = move |verb: Verb, number| {
            plugins::call(&folder, "ptp", verb.as_str(), &format!("pod-{number}"), &pod.path())
        };
        let verify = move |verb: Verb, _| {
            let shown = pod.ip("-o address show")?;
            let of = |net: &str| shown.lines().any(|line| line.contains(LINK) && line.contains(net));
            let present = [of(&format!("10.95.{subnet}.")), of(&format!("fd00:95:{subnet}:"))];
            ensure!(present == [verb == Verb::Add; 2], "addresses of both families are there: {present:?}");
            Ok(())
        };
        contenders.push(Contender::new(who, make, Some(config.as_path()), verify));
    }
    let [add, delete] = contest("ptp, dual stack", &node, contenders, runs)?;
    Ok(vec![add.beside(Reference { min: 1448.0, cpu: Some(24.0), processes: None }), delete])
}
