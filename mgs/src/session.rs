//! Who is connected and which filesystem's map each wants to hear about.

use std::collections::BTreeMap;
use std::rc::Rc;

use nacre_transport::Session;
use nacre_wire::ldlm::Event;

/// Sessions by id. An MGS session holds nothing that must survive it.
#[derive(Default)]
pub(crate) struct Sessions {
    watching: BTreeMap<u64, (Rc<Session>, String)>,
}

impl Sessions {
    /// The session has read the map of `fsname` and wants to know when it changes.
    pub(crate) fn watch(&mut self, session: &Rc<Session>, fsname: &str) {
        self.watching.insert(session.id, (Rc::clone(session), fsname.to_owned()));
    }

    pub(crate) fn remove(&mut self, session: &Session) {
        self.watching.remove(&session.id);
    }

    pub(crate) fn announce(&self, fsname: &str, epoch: u64) {
        for (session, watched) in self.watching.values() {
            if watched == fsname {
                session.send_event(Event::MapChanged { epoch });
            }
        }
    }
}
