//! Holds the layer list of ARCHITECTURE.md against `cargo metadata`: a crate uses only crates on lower lines.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

#[test]
fn a_crate_uses_only_lower_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let layers = layers(&std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs, since it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    // The folder is the crate's name in the list; the package may be called otherwise.
    let mut folders = BTreeMap::new();
    let packages = metadata["packages"].as_array().unwrap();
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        folders.insert(package["name"].as_str().unwrap(), folder);
    }

    let mut wrong = Vec::new();
    let mut checked = 0;
    for package in packages {
        let user = &folders[package["name"].as_str().unwrap()];
        let Some(line) = layers.get(user) else {
            wrong.push(format!("{user} stands on no line of the list"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let Some(used) = folders.get(dependency["name"].as_str().unwrap()) else { continue };
            checked += 1;
            if layers.get(used).is_none_or(|used_line| used_line >= line) {
                wrong.push(format!("{user} (line {line}) uses {used}"));
            }
        }
    }
    assert!(checked > 20, "only {checked} uses were found: the test reads the metadata wrongly");
    assert!(wrong.is_empty(), "layers are crossed:\n{}", wrong.join("\n"));
}

/// The lines `N  a · b   explanation` of the first fenced block.
fn layers(text: &str) -> BTreeMap<String, u32> {
    let block = text.split("```").nth(1).expect("ARCHITECTURE.md draws the layers");
    let mut layers = BTreeMap::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let (number, rest) = line.split_once("  ").expect("a line starts with its number");
        let names = rest.split("  ").next().unwrap();
        for name in names.split('·') {
            layers.insert(name.trim().to_owned(), number.parse().unwrap());
        }
    }
    layers
}
