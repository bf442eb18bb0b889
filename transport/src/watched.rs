//! A value that tasks wait for. As `tokio::sync::watch`, but who waits is woken in the order of waiting: watch spreads its
//! waiters at random, which no seed of a simulation repeats.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

/// A value and who waits for it to change.
#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Watched<T> {
    /// With this value to begin with.
    pub fn new(value: T) -> Watched<T> {
        Watched { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value now.
    pub fn get(&self) -> T {
        *self.lock()
    }

    /// Changes it and wakes everybody.
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until the value, which is looked at now and after every change, is as wanted.
    pub async fn wait_for(&self, wanted: impl Fn(&T) -> bool) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let value = self.get();
            if wanted(&value) {
                return value;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Two runs of the simulator with one seed parted where a dropped link woke its users.
    #[tokio::test]
    async fn waiters_wake_in_the_order_of_waiting() {
        let local = tokio::task::LocalSet::new();
        let woken = local
            .run_until(async {
                let watched = Rc::new(Watched::new(0));
                let woken = Rc::new(RefCell::new(Vec::new()));
                let tasks: Vec<_> = (0..100)
                    .map(|number| {
                        let (watched, woken) = (watched.clone(), woken.clone());
                        tokio::task::spawn_local(async move {
                            watched.wait_for(|value| *value == 1).await;
                            woken.borrow_mut().push(number);
                        })
                    })
                    .collect();
                // A turn of a LocalSet does not begin all of them.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                watched.update(|value| *value = 1);
                for task in tasks {
                    task.await.unwrap();
                }
                woken.take()
            })
            .await;
        assert_eq!(woken, (0..100).collect::<Vec<_>>());
    }
}
