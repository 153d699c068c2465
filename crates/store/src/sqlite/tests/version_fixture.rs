/// A file of schema version 1 as that version wrote it. It never changes: every later Warren has to open it.
pub(super) const VERSION_1_FILE: &str = "
PRAGMA journal_mode = WAL;
CREATE TABLE lease (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_ms     INTEGER NOT NULL,
    ends_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE entry (
    key      TEXT NOT NULL PRIMARY KEY,
    value    BLOB NOT NULL,
    created  INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease    INTEGER REFERENCES lease (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_by_lease ON entry (lease) WHERE lease IS NOT NULL;
CREATE TABLE change (
    revision INTEGER NOT NULL,
    key      TEXT NOT NULL,
    value    BLOB,
    PRIMARY KEY (revision, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE ledger (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,
    oldest   INTEGER NOT NULL,
    changes  INTEGER NOT NULL
) STRICT;
INSERT INTO ledger VALUES (1, 5, 2, 6);
INSERT INTO lease VALUES (7, 60000, 0);
INSERT INTO entry VALUES ('account/1', x'7b7d', 1, 3, NULL);
INSERT INTO entry VALUES ('empty', x'', 3, 3, NULL);
INSERT INTO entry VALUES ('leased', x'78', 5, 5, 7);
INSERT INTO entry VALUES ('uml\u{e4}ut', x'00ff', 2, 2, NULL);
INSERT INTO change VALUES (1, 'account/1', x'00');
INSERT INTO change VALUES (2, 'uml\u{e4}ut', x'00ff');
INSERT INTO change VALUES (3, 'account/1', x'7b7d');
INSERT INTO change VALUES (3, 'empty', x'');
INSERT INTO change VALUES (4, 'gone', NULL);
INSERT INTO change VALUES (5, 'leased', x'78');
PRAGMA user_version = 1;
";
