//! The conformance suite on every database that is at hand.
#![expect(clippy::print_stdout, reason = "what is skipped is told")]

mod memory {
    async fn open() -> Option<(bai_store::Store, ())> {
        let store = bai_store::Store::open("sqlite::memory:").await;
        Some((store.expect("a database"), ()))
    }

    bai_store::store_conformance!(open);
}

mod file {
    async fn open() -> Option<(bai_store::Store, tempfile::TempDir)> {
        let directory = tempfile::tempdir().expect("a directory");
        let uri = format!("sqlite://{}/bai.db", directory.path().display());
        Some((bai_store::Store::open(&uri).await.expect("a database"), directory))
    }

    bai_store::store_conformance!(open);
}

/// A database that we made.
mod postgres {
    use bai_testkit::services::postgres::{Database, Postgres};

    async fn open() -> Option<(bai_store::Store, Database<'static>)> {
        let database = match Postgres::shared() {
            Ok(server) => server.database(None),
            Err(missing) => {
                println!("SKIPPED: the store on PostgreSQL, because {missing}");
                return None;
            }
        };
        let store = bai_store::Store::open(&database.socket_uri()).await;
        Some((store.expect("a database"), database))
    }

    bai_store::store_conformance!(open);
}

/// A database that the original made and upgraded, with its other names, defaults and order of columns.
mod postgres_migrated {
    use std::sync::OnceLock;

    use bai_testkit::services::postgres::{Database, Postgres};

    const SCHEMA: &str = include_str!("original/schema.sql");
    const MIGRATED: &str = include_str!("original/migrated.sql");

    fn template(server: &'static Postgres) -> &'static Database<'static> {
        static TEMPLATE: OnceLock<Database<'static>> = OnceLock::new();
        TEMPLATE.get_or_init(|| {
            let database = server.database(None);
            database.psql(SCHEMA);
            database.psql(MIGRATED);
            database
        })
    }

    async fn open() -> Option<(bai_store::Store, Database<'static>)> {
        let database = match Postgres::shared() {
            Ok(server) => server.database(Some(template(server).name())),
            Err(missing) => {
                println!("SKIPPED: the store on an original's database, because {missing}");
                return None;
            }
        };
        let store = bai_store::Store::open(&database.uri()).await;
        Some((store.expect("a database"), database))
    }

    bai_store::store_conformance!(open);
}
