BEGIN TRANSACTION;
CREATE TABLE events (
  id TEXT PRIMARY KEY,
  event_index INTEGER NOT NULL,
  session_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  payload_json TEXT NOT NULL
);
INSERT INTO "events" VALUES('old-1',1,'old',1700000000000,'connection-1','agent','{"enc":"v1","k":"56355b2fde14cc92","n":"k5pW/T5KLPIm3mv6","c":"FVBOD3SsrT938ZHQo5WO2cYsnnOekusKI03qX+/UsWhGIN2Nhxe9/UKjhOKL+VdUrV0xcegMsrqfqijXVkrHFR7ilHfVHArN26eeE/iIkdR2yeDUyqU="}');
INSERT INTO "events" VALUES('old-2',2,'old',1700000000000,'connection-1','agent','{"enc":"v1","k":"56355b2fde14cc92","n":"iOUcF+sxPk1fDFxY","c":"x/MsT6rw4Dkf3nAeH1PWuPPyD3hYbhkqbWhS7DivNk2Bqh8R6GES+xl++jePS+R+09OQO8ua66J85Axm5h9HeIxVZlur0Z3pCdf3QOcypLv3gm3dlCI="}');
INSERT INTO "events" VALUES('old-3',3,'old',1700000000000,'connection-1','agent','{"enc":"v1","k":"56355b2fde14cc92","n":"YMSHt0qyDQ08XO7g","c":"QUZwomKAHggfEeeYYRVn3FtPVqwrVAAOjXnVrgq47FbRedxJ7E+hzCz3ZQEQVkLi/H7YvaNxzOTRHUfGP13Rqvu6xA0Ab5M0cLBIYSQzqhCeBJ7M1sU="}');
INSERT INTO "events" VALUES('other-1',1,'other',1700000000000,'connection-1','agent','{"enc":"v1","k":"b85c66b446eca9d8","n":"eK7Nas1Faen5eRjr","c":"IZv9RoaUYWqN0LyOxabF+aUBEhEUNUnWMAmMq97nGSc7Z3wYebYX39ldfPbYEnbeT9KmuTmiwEZjnRt/ongwB/uUeXwU9qn8uYw1MC97u+0PXye/GovLxg=="}');
CREATE TABLE session_writers (
  session_id TEXT PRIMARY KEY,
  generation INTEGER NOT NULL,
  deletions INTEGER NOT NULL
);
INSERT INTO "session_writers" VALUES('~key:old',1,0);
INSERT INTO "session_writers" VALUES('~key:other',1,0);
CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  agent TEXT NOT NULL,
  agent_session_id TEXT NOT NULL,
  last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  destroyed_at INTEGER,
  sandbox_id TEXT,
  session_init_json TEXT,
  config_options_json TEXT,
  modes_json TEXT
);
INSERT INTO "sessions" VALUES('~key:old','sandbox-agent-key','','',1700000000000,NULL,NULL,'{"key":{"master":"2fce8cb5a8749c98","key_id":"56355b2fde14cc92","nonce":"zr1kRGDr8850t/zI","data":"/mOeoMSUPt4DYvWpC1AtteYfGeH2Z7zTSyWrpc3btkZ1wIkD66AmRLki5D96kNDg"}}',NULL,NULL);
INSERT INTO "sessions" VALUES('old','mock','agent-old','connection-1',1700000000000,NULL,NULL,'{"enc":"v1","k":"56355b2fde14cc92","n":"fO1mTfjxq7cRsVcj","c":"z+xilow+cdlilFcamcdlVg1e/Q+ht0uZXSOjT3VCtDCNZZw="}',NULL,NULL);
INSERT INTO "sessions" VALUES('~key:other','sandbox-agent-key','','',1795822800598,NULL,NULL,'{"key":{"master":"2fce8cb5a8749c98","key_id":"b85c66b446eca9d8","nonce":"wGvFlRVl1TFmyJ7p","data":"P/eoHjCoAUS+37ukGfDfi70OcmcnR/az9kY9/E9+q0vB2OfzN9jjLUSvYqJy7udm"}}',NULL,NULL);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
CREATE UNIQUE INDEX idx_events_session_index ON events(session_id, event_index);
CREATE INDEX idx_sessions_order ON sessions(created_at, id);
COMMIT;
