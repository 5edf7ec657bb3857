//! From a file, or its text, to a configuration or to all that is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::problem::Report;
use super::{Config, Problems, check, file, syntax};

/// Nobody has thousands of tunnels; what is larger is something else, or endless.
const LARGEST: u64 = 1 << 20;

/// Reads and checks a configuration file.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let name = path.display().to_string();
    let bytes = read(path).map_err(|error| unreadable(&name, &error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Problems::of_file(
            &name,
            "the file is larger than 1 MiB",
            "a configuration of autossm is smaller",
        ));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(&name, text),
        Err(error) => {
            let text = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let mut report = Report::new(&text);
            report.wrong(
                text.len()..text.len(),
                "the text is not UTF-8 from here on",
                "save the file as UTF-8",
            );
            Err(report
                .finish(&name)
                .unwrap_or_else(|| Problems::of_file(&name, "not UTF-8", "save it as UTF-8")))
        }
    }
}

/// Checks the text of a configuration file; `name` stands for the file in what is reported.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(name: &str, text: &str) -> Result<Config, Problems> {
    // A byte order mark is no column.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut report = Report::new(text);
    let document = syntax::parse(text, &mut report);
    let file = file::read(&document, &mut report);
    let config = check::check(file, &mut report);
    match report.finish(name) {
        Some(problems) => Err(problems),
        None => Ok(config),
    }
}

/// Whether nobody has written a tunnel into the file yet, or there is no file: not a mistake until a tunnel is to run.
pub fn has_no_tunnel(path: &Path) -> bool {
    let text = match read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return false,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let table = text.strip_prefix('\u{feff}').unwrap_or(&text).parse::<toml::Table>();
    table.is_ok_and(|table| table.keys().all(|key| key == "defaults" || key == "hook"))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(name: &str, error: &io::Error) -> Problems {
    let (what, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            "there is no such file",
            "write one (config.example.toml shows every key), or name another with --config FILE",
        ),
        io::ErrorKind::PermissionDenied => {
            ("no permission to read the file", "run as a user who may read it, or change its owner or mode")
        }
        io::ErrorKind::IsADirectory => ("that is a directory", "name a file in it"),
        _ => {
            return Problems::of_file(
                name,
                format!("the file cannot be read: {error}"),
                "see whether its disk is well",
            );
        }
    };
    Problems::of_file(name, what, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn shown(path: &Path) -> String {
        let shown = load(path).unwrap_err().to_string();
        shown.replace(&path.display().to_string(), "FILE")
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        assert!(shown(&path).starts_with("FILE: there is no such file\n  help: write one"));
        assert_eq!(shown(folder.path()), "FILE: that is a directory\n  help: name a file in it");
        fs::write(&path, b"# ok\nx = \"\xff\"\n").unwrap();
        assert_eq!(
            shown(&path),
            "FILE:2:6: the text is not UTF-8 from here on\n  help: save the file as UTF-8"
        );
        fs::write(&path, vec![b'#'; (LARGEST + 1) as usize]).unwrap();
        assert!(shown(&path).starts_with("FILE: the file is larger than 1 MiB\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&path).is_err() {
            assert!(shown(&path).starts_with("FILE: no permission to read the file\n"));
        } else {
            // Root may read every file: the words alone are tested.
            let denied = unreadable("FILE", &io::ErrorKind::PermissionDenied.into()).to_string();
            assert!(denied.starts_with("FILE: no permission to read the file\n"));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_column() {
        let problems = parse("f", "\u{feff}x = 1\n").unwrap_err();
        assert_eq!(problems.list[0].position.unwrap().column, 1);
    }
}
