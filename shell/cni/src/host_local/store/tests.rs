use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use loden_cni_protocol::host_local::reservation;

use super::super::index;
use super::*;

fn store(root: &Path) -> Store {
    Store::open(root.to_str().unwrap(), "net").unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root.join("net"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != index::FOLDER)
        .collect();
    names.sort();
    names
}

/// The index, as (content's hash, number of files).
fn listed(root: &Path) -> usize {
    fs::read_dir(root.join("net").join(index::FOLDER)).map_or(0, Iterator::count)
}

fn is_sealed(root: &Path) -> bool {
    Index::open(&File::open(root.join("net")).unwrap()).1
}

fn add(root: &Path, container: &str, addresses: &[&str]) {
    let mut store = store(root);
    let content = reservation(container, "eth0");
    assert_eq!(store.addresses(&[content.as_bytes()]).unwrap(), Vec::<IpAddr>::new());
    for address in addresses {
        store.draft(&content).unwrap();
        assert!(store.publish(ip(address)).unwrap());
    }
    store.list(&content);
}

fn release(root: &Path, container: &str) {
    let content = reservation(container, "eth0");
    store(root).release(&[content.as_bytes(), container.as_bytes()]).unwrap();
}

#[test]
fn files_are_those_of_the_go_plugin() {
    let root = tempfile::tempdir().unwrap();
    let mut store = store(root.path());
    store.draft("c1\r\neth0").unwrap();
    assert!(store.publish(ip("10.0.0.2")).unwrap());
    store.draft("c2\r\neth0").unwrap();
    assert!(!store.publish(ip("10.0.0.2")).unwrap());
    store.discard_draft().unwrap();
    store.set_last_reserved(0, ip("10.0.0.2")).unwrap();
    assert_eq!(names(root.path()), ["10.0.0.2", "last_reserved_ip.0", "lock"]);
    let read = |name: &str| fs::read_to_string(root.path().join("net").join(name)).unwrap();
    assert_eq!(read("10.0.0.2"), "c1\r\neth0");
    assert_eq!(read("last_reserved_ip.0"), "10.0.0.2");
    assert_eq!(store.last_reserved(0), Some(ip("10.0.0.2")));
    assert_eq!(store.last_reserved(1), None);
    let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("net"), mode("net/10.0.0.2"), mode("net/last_reserved_ip.0"), mode("net/lock")),
        (0o755, 0o600, 0o600, 0o750)
    );
    let found = store.addresses(&[b"c1\r\neth0"]).unwrap();
    assert_eq!((found, listed(root.path())), (vec![ip("10.0.0.2")], 1), "a look at everything finds it");
}

#[test]
fn the_index_is_sealed_whenever_it_is_complete() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "c1", &["10.0.0.2", "fd00::2"]);
    add(root.path(), "c2", &["10.0.0.3"]);
    assert!(is_sealed(root.path()));
    assert_eq!(listed(root.path()), 3);
    release(root.path(), "c1");
    assert!(is_sealed(root.path()));
    assert_eq!(
        (names(root.path()), listed(root.path())),
        (vec!["10.0.0.3".to_owned(), "lock".to_owned()], 1)
    );
    // Nothing to free is no reason to touch anything.
    let before = root.path().join("net").metadata().unwrap().ctime_nsec();
    release(root.path(), "c1");
    assert_eq!(root.path().join("net").metadata().unwrap().ctime_nsec(), before);
}

/// What others do in the directory breaks the seal, whatever they do.
#[test]
fn what_others_made_is_found() {
    let other = |act: &dyn Fn(&Path)| {
        let root = tempfile::tempdir().unwrap();
        add(root.path(), "c1", &["10.0.0.2", "10.0.1.2"]);
        assert!(is_sealed(root.path()));
        act(&root.path().join("net"));
        assert!(!is_sealed(root.path()));
        release(root.path(), "c1");
        release(root.path(), "c9");
        assert!(is_sealed(root.path()));
        assert_eq!((names(root.path()), listed(root.path())), (vec!["lock".to_owned()], 0));
    };
    other(&|net| fs::write(net.join("10.0.0.9"), "c9\r\neth0").unwrap());
    other(&|net| fs::write(net.join("10.0.0.9"), "c9").unwrap());
    other(&|net| {
        fs::remove_file(net.join("10.0.0.2")).unwrap();
        fs::write(net.join("10.0.0.2"), "c9\r\neth0\n").unwrap();
    });
    other(&|net| fs::write(net.join("10.0.0.9"), "").unwrap());
    other(&|net| fs::write(net.join("10.0.0.9"), [0; 40]).unwrap());
    other(&|net| fs::remove_dir_all(net.join(index::FOLDER)).unwrap());
    other(&|net| {
        let entry = fs::read_dir(net.join(index::FOLDER)).unwrap().next().unwrap().unwrap();
        fs::remove_file(entry.path()).unwrap();
    });
    other(&|net| {
        let foreign = net.join(index::FOLDER).join("foreign");
        fs::create_dir_all(net.join(index::FOLDER)).unwrap();
        fs::write(foreign, "").unwrap();
    });
    other(&|net| fs::write(net.join(TEMPORARY), "c9\r\neth0").unwrap());
}

/// A file is believed by its content alone; an index that says otherwise is made anew.
#[test]
fn an_index_that_lies_frees_nobody_elses_address() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "c1", &["10.0.0.2"]);
    add(root.path(), "c2", &["10.0.0.3"]);
    add(root.path(), "c3", &["10.0.0.4"]);
    // Written in place, which no seal notices.
    fs::write(root.path().join("net/10.0.0.2"), "c2\r\neth0").unwrap();
    fs::write(root.path().join("net/10.0.0.4"), "").unwrap();
    assert!(is_sealed(root.path()));
    release(root.path(), "c1");
    assert_eq!(names(root.path()), ["10.0.0.2", "10.0.0.3", "lock"]);
    assert_eq!(listed(root.path()), 2);
    release(root.path(), "c2");
    assert_eq!((names(root.path()), listed(root.path())), (vec!["lock".to_owned()], 0));
}

#[test]
fn a_look_at_everything_reclaims_torn_files_and_sees_old_ones() {
    let root = tempfile::tempdir().unwrap();
    drop(store(root.path()));
    let write = |name: &str, content: &[u8]| fs::write(root.path().join("net").join(name), content).unwrap();
    write("10.0.0.2", b"");
    write("10.0.0.3", b"c1");
    write("10.0.0.4", b"c1\r\neth0\n");
    write("10.0.0.5", b"c2\r\neth0");
    write("10.9.0.5", &[0; 10]);
    write("10.9.0.6", b"the printer");
    write("notes", b"c1");
    fs::create_dir(root.path().join("net/10.0.0.6")).unwrap();
    let mut store = store(root.path());
    let found = store.addresses(&[b"c1\r\neth0", b"c1"]).unwrap();
    assert_eq!(found, [ip("10.0.0.3"), ip("10.0.0.4")]);
    for taken in ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.9.0.6"] {
        assert!(store.is_taken(ip(taken)), "{taken}");
    }
    assert!(!store.is_taken(ip("10.0.0.2")) && !store.is_taken(ip("10.9.0.5")));
    drop(store);
    assert_eq!(
        names(root.path()),
        ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.9.0.6", "lock", "notes"]
    );
}

#[test]
fn release_prefers_the_exact_owner() {
    let root = tempfile::tempdir().unwrap();
    drop(store(root.path()));
    let write = |name: &str, content: &str| fs::write(root.path().join("net").join(name), content).unwrap();
    write("10.0.0.2", "c1\r\neth0");
    write("10.0.0.3", "c1\r\neth1");
    write("10.0.0.4", "c1");
    release(root.path(), "c1");
    assert_eq!(names(root.path()), ["10.0.0.3", "10.0.0.4", "lock"]);
    release(root.path(), "c1");
    assert_eq!(names(root.path()), ["10.0.0.3", "lock"]);
    release(root.path(), "c1");
    assert_eq!(names(root.path()), ["10.0.0.3", "lock"]);
}

#[test]
fn collecting_spares_what_it_is_told_to() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "c1", &["10.0.0.2"]);
    add(root.path(), "c2", &["10.0.0.3", "fd00::3"]);
    fs::write(root.path().join("net/10.0.0.4"), "c2").unwrap();
    fs::write(root.path().join("net/10.0.0.5"), "the printer").unwrap();
    let keep = |holder: &Holder| {
        *holder == Holder::Unknown
            || matches!(holder, Holder::Attachment { container_id, .. } if container_id == "c1")
    };
    assert!(store(root.path()).collect(keep).is_empty());
    assert_eq!(names(root.path()), ["10.0.0.2", "10.0.0.5", "lock"]);
    assert!(is_sealed(root.path()));
    assert_eq!(listed(root.path()), 1);
    assert!(store(root.path()).collect(|_| false).is_empty());
    assert_eq!(listed(root.path()), 0);
}

#[test]
fn nothing_is_made_where_nothing_was_reserved() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    assert!(Store::open_existing(path, "net").unwrap().is_none());
    assert!(!root.path().join("net").exists());
    assert!(taken(&root.path().join("net"), false).unwrap().is_empty());
    fs::write(root.path().join("file"), "").unwrap();
    let error = Store::open(&format!("{path}/file"), "net").unwrap_err();
    assert!(error.to_string().contains("could not make the directory"), "{error}");
}
