//! What cargo knows about this workspace, and commands that start in it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Variables that `cargo run` sets for xtask itself and that nothing it starts should see.
const VARIABLES_OF_CARGO_RUN: [&str; 2] = ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"];

/// The checkout under test.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    /// Integration test targets of all members.
    tests: Vec<TestTarget>,
    /// Members that are built with loom's atomics under `cfg(loom)`.
    loom: Vec<String>,
    guest: Vec<GuestTest>,
}

/// An integration test that runs in a guest, as `package.metadata.guest` of its manifest has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestTest {
    pub(crate) name: String,
    /// What it needs of the kernel.
    pub(crate) modules: Vec<String>,
    /// What it needs of Debian. What these depend on is not there unless it is named, too.
    pub(crate) packages: Vec<String>,
    /// Variables that it sees there.
    pub(crate) environment: BTreeMap<String, String>,
}

impl GuestTest {
    fn from_metadata(name: &str, metadata: &Value) -> anyhow::Result<Self> {
        let mut test = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        for (key, value) in metadata.as_object().into_iter().flatten() {
            let read = || format!("read `{key}` of package.metadata.guest.{name}");
            match key.as_str() {
                "modules" => {
                    test.modules = serde_json::from_value(value.clone()).with_context(read)?;
                }
                "packages" => {
                    test.packages = serde_json::from_value(value.clone()).with_context(read)?;
                }
                "environment" => {
                    test.environment = serde_json::from_value(value.clone()).with_context(read)?;
                }
                _ => bail!("{}: there is no such key", read()),
            }
        }
        Ok(test)
    }
}

/// One file under a member's `tests/`.
struct TestTarget {
    package: String,
    name: String,
}

impl Workspace {
    /// Asks cargo about the workspace that xtask was built from.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("find the workspace above xtask")?;
        let output = cargo_in(root)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("run cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let metadata =
            serde_json::from_slice(&output.stdout).context("read cargo metadata's answer")?;
        Self::from_metadata(&metadata)
    }

    fn from_metadata(metadata: &Value) -> anyhow::Result<Self> {
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("read `{key}` in cargo metadata's answer"))
        };
        let (mut tests, mut loom, mut guest) = (Vec::new(), Vec::new(), Vec::new());
        for package in elements(&metadata["packages"]) {
            let name = package["name"].as_str().unwrap_or_default();
            if elements(&package["dependencies"]).any(|needed| needed["name"] == "loom") {
                loom.push(name.to_owned());
            }
            for target in elements(&package["targets"]) {
                if elements(&target["kind"]).any(|kind| kind == "test") {
                    tests.push(TestTarget {
                        package: name.to_owned(),
                        name: target["name"].as_str().unwrap_or_default().to_owned(),
                    });
                }
            }
            for (test, metadata) in package["metadata"]["guest"]
                .as_object()
                .into_iter()
                .flatten()
            {
                let has = |known: &TestTarget| known.package == name && known.name == *test;
                ensure!(
                    tests.iter().any(has),
                    "package.metadata.guest of {name} has {test}, which is no test of it"
                );
                guest.push(GuestTest::from_metadata(test, metadata)?);
            }
        }
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            tests,
            loom,
            guest,
        })
    }

    /// A cargo command in the workspace.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = cargo_in(&self.root);
        command.args(arguments);
        command
    }

    /// Names of the integration tests that `wanted` picks, each once.
    pub(crate) fn tests(&self, wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let mut names: Vec<_> = self
            .tests
            .iter()
            .map(|test| test.name.as_str())
            .filter(|name| wanted(name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether `package` has the integration test `name`.
    pub(crate) fn has_test(&self, package: &str, name: &str) -> bool {
        self.tests
            .iter()
            .any(|test| test.package == package && test.name == name)
    }

    /// Names of the members that have models for loom.
    pub(crate) fn loom_packages(&self) -> impl Iterator<Item = &str> {
        self.loom.iter().map(String::as_str)
    }

    /// What is to run in a guest.
    pub(crate) fn guest_tests(&self) -> &[GuestTest] {
        &self.guest
    }

    /// Where a step's log is kept.
    pub(crate) fn log(&self, step: &str) -> PathBuf {
        self.target
            .join("xtask")
            .join("logs")
            .join(format!("{step}.log"))
    }
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn cargo_in(root: &Path) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root);
    for variable in VARIABLES_OF_CARGO_RUN {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_by_kind_and_named_once_and_models_by_their_dependency() {
        let metadata = serde_json::json!({
            "workspace_root": "/w",
            "target_directory": "/w/target",
            "packages": [
                {"name": "a", "targets": [
                    {"name": "a", "kind": ["lib"]},
                    {"name": "loom", "kind": ["test"]},
                    {"name": "scripts", "kind": ["test"]},
                ], "dependencies": [{"name": "loom", "target": "cfg(loom)"}, {"name": "libc"}]},
                {"name": "b", "targets": [{"name": "scripts", "kind": ["test"]}]},
            ],
        });
        let workspace = Workspace::from_metadata(&metadata).expect("the answer is whole");
        assert_eq!(workspace.tests(|_| true), ["loom", "scripts"]);
        assert!(workspace.has_test("a", "loom"));
        assert!(!workspace.has_test("b", "loom"));
        assert_eq!(workspace.loom_packages().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_guest_test_is_a_test_with_modules_and_environment() {
        let metadata = |guest: Value| {
            serde_json::json!({
                "workspace_root": "/w",
                "target_directory": "/w/target",
                "packages": [{
                    "name": "a",
                    "targets": [{"name": "privileged_x", "kind": ["test"]}],
                    "metadata": {"guest": guest},
                }],
            })
        };
        let guest = serde_json::json!({"privileged_x": {
            "modules": ["veth", "bridge"],
            "packages": ["xdp-tools"],
            "environment": {"NEARWIRE_MESSAGES": "5"},
        }});
        let workspace = Workspace::from_metadata(&metadata(guest)).expect("the answer is whole");
        let expected = GuestTest {
            name: "privileged_x".to_owned(),
            modules: ["veth", "bridge"].map(str::to_owned).into(),
            packages: vec!["xdp-tools".to_owned()],
            environment: [("NEARWIRE_MESSAGES".to_owned(), "5".to_owned())].into(),
        };
        assert_eq!(workspace.guest_tests(), [expected]);
        for wrong in [
            serde_json::json!({"privileged_y": {}}),
            serde_json::json!({"privileged_x": {"module": ["veth"]}}),
            serde_json::json!({"privileged_x": {"modules": "veth"}}),
        ] {
            assert!(Workspace::from_metadata(&metadata(wrong)).is_err());
        }
    }

    #[test]
    fn an_answer_without_a_target_directory_is_refused() {
        let answer = Workspace::from_metadata(&serde_json::json!({"workspace_root": "/w"}));
        assert!(answer.is_err());
    }
}
