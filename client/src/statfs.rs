//! Space of the whole filesystem: the sum over the OSTs, asked for at most once a second.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use nacre_transport::host::ImportState;
use nacre_wire::Status;
use nacre_wire::mdt::MdtStatfs;
use nacre_wire::ost::OstStatfs;
use tokio::time::timeout;

use crate::api::MountStatfs;
use crate::client::Client;

/// The last answers.
#[derive(Default)]
pub(crate) struct StatfsCache {
    osts: RefCell<BTreeMap<u16, OstStatfs>>,
    mdt: Cell<Option<MdtStatfs>>,
    asked: Cell<Option<Duration>>,
}

impl Client {
    /// Space of each OST by index, as it was told last; `None`: it never answered. For `lfs df`.
    pub async fn ost_statfs(&self) -> Vec<(u16, Option<OstStatfs>)> {
        self.refresh_statfs().await;
        let known = self.statfs.osts.borrow();
        self.osts.borrow().keys().map(|index| (*index, known.get(index).cloned())).collect()
    }

    /// Space and inodes of the MDT, as it was told last. For `lfs df -i`.
    pub async fn mdt_statfs(&self) -> Option<MdtStatfs> {
        self.refresh_statfs().await;
        self.statfs.peek_mdt()
    }

    pub(crate) async fn statfs_sum(&self) -> Result<MountStatfs, Status> {
        self.refresh_statfs().await;
        let mdt = self.statfs.peek_mdt().unwrap_or_default();
        let mut sum = MountStatfs {
            inodes: mdt.inodes + mdt.inodes_free,
            inodes_free: mdt.inodes_free,
            ..MountStatfs::default()
        };
        for ost in self.statfs.osts.borrow().values() {
            sum.total_bytes += ost.total_bytes;
            sum.free_bytes += ost.free_bytes;
        }
        Ok(sum)
    }

    /// Asks those that are connected; who is away counts with what it said last.
    async fn refresh_statfs(&self) {
        let now = self.env.now();
        let age = Duration::from_millis(self.params.statfs_age_ms.get());
        if self.statfs.asked.get().is_some_and(|asked| now.saturating_sub(asked) < age) {
            return;
        }
        let here = |import: &Rc<nacre_transport::host::Import>| {
            // At first nobody is connected yet: then everybody is worth waiting for.
            import.state() == ImportState::Full || import.connect_reply().is_none()
        };
        let osts = self.all_osts().into_iter().filter(|ost| here(&ost.stub.import));
        let ask_osts = join_all(osts.map(async |ost| (ost.index, timeout(ANSWER_MAX, ost.stub.statfs()).await)));
        let ask_mdt = timeout(ANSWER_MAX, self.mdt.statfs());
        let (osts, mdt) = tokio::join!(ask_osts, ask_mdt);
        for (index, answer) in osts {
            if let Ok(Ok(answer)) = answer {
                self.statfs.osts.borrow_mut().insert(index, answer);
            }
        }
        if let Ok(Ok(answer)) = mdt {
            self.statfs.mdt.set(Some(answer));
        }
        self.statfs.asked.set(Some(self.env.now()));
    }
}

impl StatfsCache {
    fn peek_mdt(&self) -> Option<MdtStatfs> {
        let known = self.mdt.take();
        self.mdt.set(known.clone());
        known
    }
}

/// df must not hang because a server does.
const ANSWER_MAX: Duration = Duration::from_secs(2);
