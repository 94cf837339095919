//! The conformance suite on every database that is at hand.

mod memory {
    async fn open() -> (bai_store::Store, ()) {
        (
            bai_store::Store::open("sqlite::memory:")
                .await
                .expect("a database"),
            (),
        )
    }

    bai_store::store_conformance!(open);
}

mod file {
    async fn open() -> (bai_store::Store, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        let uri = format!("sqlite://{}/bai.db", directory.path().display());
        (bai_store::Store::open(&uri).await.expect("a database"), directory)
    }

    bai_store::store_conformance!(open);
}
