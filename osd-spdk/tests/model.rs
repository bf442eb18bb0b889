//! The engine against the model: random transactions, reads, checkpoints and reopening give the same answers.

mod support;

use std::rc::Rc;

use nacre_osd::bdev::BdevRef;
use nacre_osd::bdev::malloc::Malloc;
use nacre_osd::bdev::recording::Recorder;
use nacre_osd::model::ModelStore;
use nacre_osd::store::{Durability, Store};
use support::{Random, SHAPE, assert_same, format, open, picture, run, transaction};

async fn compare(bdev: BdevRef, seed: u64, steps: u64) {
    format(&bdev).await;
    let mut osd = open(&bdev).await;
    let model = ModelStore::new();
    let mut random = Random(seed);
    for step in 0..steps {
        let transaction = transaction(&mut random, SHAPE);
        let text = format!("seed {seed} step {step}: {:.300?}", transaction.ops);
        let expected = model.submit(transaction.clone()).await.map_err(|error| error.kind);
        let found = osd.submit(transaction).await.map_err(|error| error.kind);
        assert_eq!(found, expected, "{text}");
        match random.below(60) {
            0 => osd.checkpoint().await.unwrap(),
            1 => {
                osd.close().await.unwrap();
                osd = open(&bdev).await;
            }
            2 => osd.wait(osd.last_transno(), Durability::Stable).await.unwrap(),
            3 => {
                // As a crash of the process: what is written is there.
                osd.wait(osd.last_transno(), Durability::Written).await.unwrap();
                drop(osd);
                osd = open(&bdev).await;
            }
            4..=9 => {}
            _ => continue,
        }
        assert_same(&picture(&*osd).await, &picture(&model).await, &text);
    }
}

#[test]
fn same_as_the_model_on_a_device_without_a_cache() {
    for seed in 0..5 {
        run(compare(Rc::new(Malloc::with_bytes("m", 64 << 20).unwrap()), seed, 400));
    }
}

#[test]
fn same_as_the_model_on_a_device_with_a_cache() {
    for seed in 100..104 {
        run(compare(Rc::new(Recorder::new("r", 64 << 20, seed).slow(4)), seed, 300));
    }
}
