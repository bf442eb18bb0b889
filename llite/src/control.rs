//! Extended attributes that are not stored anywhere: how tools ask the client behind a mount.
//!
//! | name | get | set |
//! |---|---|---|
//! | `nacre.fid` | the FID as text | |
//! | `nacre.layout` | JSON of [`Layout`](nacre_wire::Layout), `null` without objects | |
//! | `nacre.stripe` | JSON of [`StripeHint`], a directory's default | the same, on a directory or a file without objects |
//! | `nacre.path.FID` | every path of the FID from the mount's root, one per line | |
//! | `nacre.mount` | JSON: source, mountpoint, root, ro, fuse, file_bytes_max, and what the client adds | |
//! | `nacre.param.NAME` | a parameter of the client | set it |
//!
//! They are on every file, are not listed, and need what any extended attribute needs from the kernel: read or write
//! permission on the file.

use std::rc::Rc;

use nacre_client::FileSystem;
use nacre_wire::layout::StripeHint;
use nacre_wire::mdt::Cred;
use nacre_wire::{Fid, Status};
use serde_json::{Value, json};

use crate::session::Session;

/// What the process behind a mount can be asked besides files.
pub trait Parameters {
    /// Facts about the client for `nacre.mount`: an object.
    fn info(&self) -> Value;
    /// A parameter's text.
    ///
    /// # Errors
    /// `ENODATA`: there is none of that name.
    fn get(&self, name: &str) -> Result<String, Status>;
    /// Sets one.
    ///
    /// # Errors
    /// `ENODATA`: there is none of that name; `EINVAL`: not with that value.
    fn set(&self, name: &str, value: &str) -> Result<(), Status>;
}

/// What a mount says about itself.
#[derive(Clone)]
pub struct Control {
    /// As given to mount.
    pub source: String,
    /// Where.
    pub mountpoint: String,
    /// Read-only.
    pub read_only: bool,
    /// The client's part.
    pub parameters: Option<Rc<dyn Parameters>>,
}

/// Whether a name is handled here.
pub fn is_control(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

impl<F: FileSystem + 'static> Session<F> {
    pub(crate) async fn control_get(&self, fid: Fid, name: &[u8]) -> Result<Vec<u8>, Status> {
        let name = control_name(name)?;
        let text = match name {
            "fid" => fid.to_string(),
            "layout" => json_text(&self.fs.layout(fid).await?)?,
            "stripe" => json_text(&self.fs.stripe_default(fid).await?)?,
            "mount" => self.describe().to_string(),
            _ => {
                if let Some(text) = name.strip_prefix("path.") {
                    let fid = text.parse().map_err(|_| Status::EINVAL)?;
                    return Ok(self.fs.fid_to_path(fid).await?.join(&b'\n'));
                }
                let parameter = name.strip_prefix("param.").ok_or(Status::ENODATA)?;
                self.control.parameters.as_ref().ok_or(Status::ENODATA)?.get(parameter)?
            }
        };
        Ok(text.into_bytes())
    }

    pub(crate) async fn control_set(&self, cred: &Cred, fid: Fid, name: &[u8], value: &[u8]) -> Result<(), Status> {
        match control_name(name)? {
            "stripe" => {
                let hint: StripeHint = serde_json::from_slice(value).map_err(|_| Status::EINVAL)?;
                hint.validate()?;
                self.fs.set_stripe(cred, fid, hint).await
            }
            "fid" | "layout" | "mount" => Err(Status::EPERM),
            name => {
                let parameter = name.strip_prefix("param.").ok_or(Status::EOPNOTSUPP)?;
                // Permission on a file says nothing about who may tune the client.
                if cred.uid != 0 {
                    return Err(Status::EPERM);
                }
                let value = std::str::from_utf8(value).map_err(|_| Status::EINVAL)?;
                self.control.parameters.as_ref().ok_or(Status::ENODATA)?.set(parameter, value)
            }
        }
    }

    fn describe(&self) -> Value {
        let negotiated = self.negotiated();
        let mut facts = json!({
            "source": self.control.source,
            "mountpoint": self.control.mountpoint,
            "root": self.fs.root().to_string(),
            "ro": self.control.read_only,
            "fuse": format!("{}.{}", crate::abi::MAJOR, negotiated.minor),
            "keeps_names": self.keeps_names(),
            "file_bytes_max": self.fs.file_bytes_max(),
        });
        let client = self.control.parameters.as_ref().map(|parameters| parameters.info());
        if let (Some(facts), Some(Value::Object(client))) = (facts.as_object_mut(), client) {
            facts.extend(client);
        }
        facts
    }
}

const PREFIX: &[u8] = b"nacre.";

fn control_name(name: &[u8]) -> Result<&str, Status> {
    let name = name.strip_prefix(PREFIX).ok_or(Status::ENODATA)?;
    std::str::from_utf8(name).map_err(|_| Status::ENODATA)
}

fn json_text(value: &impl serde::Serialize) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|_| Status::EIO)
}
