//! The executables that a build has made.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// What has cargo name the executables; everything else that it says stays readable.
pub(crate) const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// One executable.
pub(crate) struct Executable {
    pub(crate) package: String,
    pub(crate) target: String,
    pub(crate) is_library: bool,
    /// Whether it runs tests.
    pub(crate) is_test: bool,
    pub(crate) path: PathBuf,
}

/// The executables that cargo says it has built.
pub(crate) fn executables(messages: &str) -> anyhow::Result<Vec<Executable>> {
    let mut executables = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("read cargo's messages")?;
        let Some(path) = message["executable"].as_str() else {
            continue;
        };
        // `path+file:///w/consensus#nearwire-consensus@0.1.0`, or without the name if that is the
        // directory's.
        let id = message["package_id"].as_str().unwrap_or_default();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let package = match id.rsplit_once('#') {
            Some((_, named)) if named.contains('@') => named.split('@').next().unwrap_or_default(),
            _ => target,
        };
        executables.push(Executable {
            package: package.to_owned(),
            target: target.to_owned(),
            is_library: message["target"]["kind"] == serde_json::json!(["lib"]),
            is_test: message["profile"]["test"] == Value::Bool(true),
            path: PathBuf::from(path),
        });
    }
    ensure!(!executables.is_empty(), "cargo named no executable");
    Ok(executables)
}

/// The program, or the test, that is called `target`.
pub(crate) fn named<'a>(
    executables: &'a [Executable],
    target: &str,
    is_test: bool,
) -> anyhow::Result<&'a Path> {
    let mut found = executables.iter();
    let found = found.find(|one| one.target == target && one.is_test == is_test && !one.is_library);
    let found = found.with_context(|| format!("find `{target}` among what cargo has built"))?;
    Ok(&found.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_known_by_package_target_and_what_they_run() {
        let message = |id: &str, kind: &str, name: &str, is_test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "package_id": id,
                "target": {"kind": [kind], "name": name},
                "profile": {"test": is_test},
                "executable": format!("/w/{kind}/{name}"),
            })
            .to_string()
        };
        let core = "path+file:///w/consensus#nearwire-consensus@0.1.0";
        let host = "path+file:///w/nearwire#0.1.0";
        let messages = [
            message(core, "lib", "nearwire_consensus", true),
            message(core, "test", "region", true),
            message(host, "lib", "nearwire", true),
            message(host, "bin", "nearwire", false),
            "   Compiling nothing".to_owned(),
        ];
        let all = executables(&messages.join("\n")).expect("four executables");
        let packages: Vec<_> = all.iter().map(|one| one.package.as_str()).collect();
        let named = |target, is_test| named(&all, target, is_test).ok().and_then(Path::to_str);
        let core = "nearwire-consensus";
        assert_eq!(packages, [core, core, "nearwire", "nearwire"]);
        assert_eq!(named("region", true), Some("/w/test/region"));
        assert_eq!(named("nearwire", false), Some("/w/bin/nearwire"));
        assert_eq!(named("nearwire", true), None);
    }
}
