//! The image that every container and every sandbox is of: one static busybox, and a web server that tells who asked and who answers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use crate::machine::run;

/// The image's name. Nothing of that domain can be fetched.
pub(crate) const NAME: &str = "loden.test/pod:1";
/// The archive, as `docker save` writes it.
pub(crate) const ARCHIVE: &str = "/run/image/image.tar";

/// Answers with the address of who asks and the name of who answers.
const WHO: &str =
    "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$REMOTE_ADDR $(/bin/hostname)\"\n";

/// Makes [`ARCHIVE`].
pub(crate) fn make() {
    let (root, base) = ("/run/image/root", "/run/image");
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "www/cgi-bin"] {
        fs::create_dir_all(format!("{root}/{folder}")).unwrap();
    }
    fs::copy("/bin/busybox", format!("{root}/bin/busybox")).unwrap();
    for name in ["sh", "cat", "hostname", "httpd", "ip", "sleep", "wget"] {
        symlink("busybox", format!("{root}/bin/{name}")).unwrap();
    }
    let who = format!("{root}/www/cgi-bin/who");
    fs::write(&who, WHO).unwrap();
    fs::set_permissions(&who, fs::Permissions::from_mode(0o755)).unwrap();

    run("tar", &["-C", root, "-cf", "/run/image/layer.tar", "."]);
    let sum = run("sha256sum", &["/run/image/layer.tar"]);
    let sum = sum.split_whitespace().next().unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["httpd", "-f", "-p", "[::]:80", "-h", "/www"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]}, "history": [],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(format!("{base}/config.json"), config.to_string()).unwrap();
    fs::write(format!("{base}/manifest.json"), manifest.to_string()).unwrap();
    run("tar", &["-C", base, "-cf", ARCHIVE, "config.json", "manifest.json", "layer.tar"]);
}
