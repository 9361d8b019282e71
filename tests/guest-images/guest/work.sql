CREATE TABLE item(id INTEGER PRIMARY KEY, kind TEXT, price REAL, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO item SELECT i, 'kind' || (i * 7919 % 13), (i * 31337 % 10007) / 7.0,
    printf('%08x', i * 2654435761 % 4294967296) FROM n;
CREATE INDEX by_kind ON item(kind, price);
SELECT kind, count(*), printf('%.6f', sum(price)), min(note), max(note) FROM item GROUP BY kind ORDER BY kind;
SELECT count(*) FROM item a JOIN item b ON a.id = b.id + 1 AND a.kind < b.kind;
UPDATE item SET note = upper(note) || substr(note, 3, 4) WHERE id % 3 = 0;
DELETE FROM item WHERE id % 11 = 5;
SELECT count(*), sum(length(note)), printf('%.4f', avg(price)) FROM item WHERE note LIKE '%A%';
SELECT id, note FROM item ORDER BY note DESC LIMIT 5;
PRAGMA integrity_check;
